"""The files of a configuration: YAML with `_base_` chains, paths relative to the file that names them, overrides."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from isodet.strict import ConfigError, merge
from runtime.files.write import absolute_path
from runtime.files.yaml import parse_yaml
from trainer.config.custom import joined_folders

_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_WEIGHTS = ("model", "backbone", "weights")
_PATHS = {
    ("init",), ("model", "classes"), _WEIGHTS, ("distill", "teacher"), ("augment", "hard_negatives", "file"),
    ("data", "cache_dir"), ("data", "train", "annotations"), ("data", "train", "images"),
    ("data", "train", "pictures"), ("data", "val", "pictures"),
    ("data", "val", "annotations"), ("data", "val", "images"),
}  # fmt: skip
"""The keys whose values are paths."""


class _Loader(yaml.SafeLoader):
    """YAML as version 1.2 reads it: `no` and `off` are words, `1e-3` is a number. No key may occur twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := sorted(key for key, count in counts.items() if count > 1):
            raise yaml.constructor.ConstructorError(None, None, f"key {twice[0]!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_BOOL, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)


def read_mapping(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The config at `path`, laid over those of its `_base_` chain, with its paths made absolute.

    seen: the configs whose `_base_` led here, the first one first. Raises `ConfigError` naming the file.
    """
    asked = f" (named as _base_ by {seen[-1]})" if seen else ""
    try:
        path = absolute_path(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{str(path)!r}{asked}: is no name that a file can have: {error}") from None
    if path in seen:
        raise ConfigError(f"{path}: _base_ comes back to itself through {' -> '.join(p.name for p in seen)}")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read this config{asked}: {error.strerror}") from None
    except UnicodeDecodeError:
        kind = "; a checkpoint goes on with --resume or --qat, or is named as init=" if path.suffix == ".pt" else ""
        raise ConfigError(f"{path}: expected a YAML config, and this is not a text file{kind}") from None
    try:
        mapping = parse_yaml(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(mapping, dict):
        raise ConfigError(f"{path}: expected a YAML mapping of keys, got {type(mapping).__name__}")
    try:
        mapping = _absolute(mapping, path.parent, ())  # before files are merged
        code = mapping.setdefault("code", [str(path.parent)])
        if isinstance(code, list) and all(isinstance(folder, str) for folder in code):
            mapping["code"] = [_placed(folder, path.parent, "code") for folder in code]
    except ConfigError as error:
        raise error.of_file(path) from None
    bases = mapping.pop("_base_", None)
    if bases is None:
        return mapping
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(b, str) for b in bases):
        raise ConfigError(f"{path}: _base_: expected a path or a list of paths, got {bases!r}", key="_base_")
    below: dict[str, Any] = {}
    for base in bases:
        above = read_mapping(path.parent / base, (*seen, path))
        below = merge(below, {**above, "code": joined_folders(above["code"], below.get("code", []))})
    return merge(below, {**mapping, "code": joined_folders(mapping["code"], below["code"])} if bases else mapping)


def _absolute(value: Any, folder: Path, keys: tuple[str, ...]) -> Any:
    """The `value` of the dotted key `keys`, with its paths made absolute from `folder`."""
    if isinstance(value, dict):
        return {key: _absolute(below, folder, (*keys, str(key))) for key, below in value.items()}
    if keys == ("data", "train") and isinstance(value, list):
        return [_absolute(split, folder, keys) for split in value]
    if keys == _WEIGHTS and value in ("imagenet", "imagenet_v1"):
        return value
    if keys in _PATHS and isinstance(value, str):
        return _placed(value, folder, ".".join(keys))
    return value


def _placed(value: str, folder: Path, key: str) -> str:
    """The path `value`, relative to `folder`, as an absolute path. Raises `ConfigError` where it cannot be a path."""
    try:
        return str(absolute_path(folder / Path(value).expanduser()))
    except (OSError, ValueError, RuntimeError) as error:  # a NUL; ~user of an unknown user
        raise ConfigError(f"{key}: expected a path, got {value!r:.80}: {error}", key=key) from None


def read_override(text: str) -> dict[str, Any]:
    """The mapping that `key.sub=value` stands for; paths are seen from the working folder. Raises `ConfigError`."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {text!r}: expected key=value, for example optim.lr=0.002")
    keys = key.strip().split(".")
    try:
        parsed = parse_yaml(value, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {text!r}: the value is not valid YAML: {' '.join(str(error).split())}") from None
    parsed = _absolute(parsed, Path(), tuple(keys))
    for k in reversed(keys):
        parsed = {k: parsed}
    return parsed
