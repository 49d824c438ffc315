"""The training configuration as JSON Schema (draft 2020-12), by which editors complete and check a YAML file.

It is made of the dataclasses that the reader fills, and refuses what the reader refuses of keys, types and names.
Ranges and what does not fit together are the reader's business.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Literal, Union

from isodet.field_docs import field_docs
from isodet.strict import CustomName, default_of, to_mapping
from models.config.model import PRESETS
from models.config.network import BACKBONES
from trainer.config.train import TrainConfig

_SCALARS = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
_TEXT = {"type": "string"}
_OWN = {**_TEXT, "pattern": r"^[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*$"}
_WIDER = {  # keys for which a file may have more than the type says, or only some texts
    "_base_": {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]},
    "model.classes": {"anyOf": [{"type": "array", "items": _TEXT}, _TEXT]},
    "model.backbone.name": {"anyOf": [{"enum": list(BACKBONES)}, {**_TEXT, "pattern": "^timm:."}, _OWN]},
}
BASE = "Path of a configuration, or a list of paths, that lies below this one. Paths are relative to this file."


@dataclass(frozen=True)
class Key:
    """One key of the configuration.

    key: Dotted.
    hint: Its annotated type.
    text: What its field's docstring says.
    default: The plain form of the default; `dataclasses.MISSING` for a key that is needed.
    presets: Other defaults, by the value of `model.detector` that has them.
    """

    key: str
    hint: Any
    text: str
    default: Any
    presets: Mapping[str, Any]


def keys_of(kind: Any, path: str = "") -> list[Key]:
    """The keys of the dataclass `kind` where it stands at the dotted `path`, in the order of the fields."""
    hints, texts, keys = typing.get_type_hints(kind), field_docs(kind), []
    for field in fields(kind):
        key, default = f"{path}.{field.name}".lstrip("."), to_mapping(default_of(field))
        first, *others = ((name, _value(name, key, default)) for name in PRESETS)
        presets = {name: value for name, value in others if value != first[1]}
        keys.append(Key(key, hints[field.name], texts.get(field.name, ""), first[1], presets))
    return keys


def parts_of(hint: Any) -> list[Any]:
    """The dataclasses among the types that `hint` allows."""
    return [option for option in (hint, *typing.get_args(hint)) if is_dataclass(option)]


def config_schema() -> dict[str, Any]:
    """The schema of a YAML file that `trainer.read_config` reads, as JSON-ready objects."""
    schema = _schema(TrainConfig, "")
    schema["properties"]["_base_"] = {"description": BASE, **_WIDER["_base_"]}
    needed = _needed(TrainConfig)
    model = needed["properties"].pop("model")
    needed["required"].remove("model")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A training configuration of isodet",
        **schema,
        # With `_base_` a missing key may be in the other file. With `init` the model is the checkpoint's.
        "if": {"required": ["_base_"]},
        "else": {
            **needed,
            "if": {"required": ["init"]},
            "else": {"required": ["model"], "properties": {"model": model}},
        },
    }


def _value(preset: str, key: str, default: Any) -> Any:
    """The default of `key` under a preset of `model.detector`; `default` is that of its dataclass."""
    value: Any = {"model": PRESETS[preset]}
    for name in key.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return default
        value = value[name]
    return default if isinstance(value, Mapping) else value


def _needed(kind: Any) -> dict[str, Any]:
    """A schema that requires the keys without default, of `kind` and of the sections below it, and nothing else."""
    below = {key.key: [_needed(part) for part in parts_of(key.hint)] for key in keys_of(kind)}
    return {
        "required": [key.key for key in keys_of(kind) if key.default is MISSING],
        "properties": {key: parts[0] for key, parts in below.items() if parts and parts[0]["required"]},
    }


def _schema(hint: Any, path: str) -> dict[str, Any]:
    """The schema of the value at the dotted `path`, of the type `hint`. It accepts what `isodet.strict` accepts."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if path in _WIDER:
        return dict(_WIDER[path])
    if is_dataclass(hint):
        properties = {}
        for key in keys_of(hint, path):
            others = "".join(f" {name}: {value}." for name, value in key.presets.items())
            text = {"description": key.text + (f" Default of other detectors:{others}" if others else "")}
            default = {} if key.default is MISSING or parts_of(key.hint) else {"default": key.default}
            properties[key.key.rpartition(".")[2]] = {**_schema(key.hint, key.key), **text, **default}
        return {"type": "object", "properties": properties, "additionalProperties": False}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(option, path) for option in args]}
    if origin is Literal:
        return {"enum": list(args)}
    if origin is tuple and args[-1] is Ellipsis:
        item = _schema(args[0], path)
        if is_dataclass(args[0]):  # files merge mappings, not lists: an item is complete
            item["required"] = _needed(args[0])["required"]
        return {"type": "array", "items": item}
    if origin is tuple:
        items = [_schema(item, path) for item in args]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if hint is dict or origin is Mapping:
        return {"type": "object"}
    return dict(_OWN) if hint is CustomName else {"type": _SCALARS[hint]}
