"""Typed configuration: the one strict function that turns mappings into dataclasses.

`build` is used for every configuration of the project: an unknown key, a wrong type or a value out of range is a
`ConfigError` that names the dotted path and, for a key, the nearest valid one.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says where, what was expected and what to do."""


def build(kind: type[T], mapping: Any, path: str = "") -> T:
    """Build the dataclass `kind` from a plain mapping (as YAML or JSON give it).

    Raises `ConfigError` naming the dotted `path` of the first key that is unknown, missing, of the
    wrong type or out of range.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{path or 'config'}: expected a mapping of keys, got {_shown(mapping)}")
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in mapping:
        if key not in fields:
            raise ConfigError(f"unknown key '{_join(path, key)}'{nearest(str(key), fields)}")
    hints = typing.get_type_hints(kind)
    values = {}
    for name, f in fields.items():
        if name in mapping:
            values[name] = _convert(hints[name], mapping[name], _join(path, name))
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"missing key '{_join(path, name)}' (expected {_described(hints[name])})")
    try:
        return kind(**values)
    except ConfigError as error:  # raised by __post_init__, which does not know where it stands
        raise ConfigError(f"{path}.{error}" if path else str(error)) from None


def to_mapping(config: Any) -> Any:
    """The plain form of a config: dicts, lists and scalars only, so YAML and JSON can write it."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_mapping(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, (tuple, list)):
        return [to_mapping(item) for item in config]
    return config


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` laid on top: mappings merge key by key, everything else replaces."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _convert(hint: Any, value: Any, path: str) -> Any:
    """`value` as the annotated type `hint`, or a ConfigError at `path`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, path)  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        shaped = [option for option in args if _has_shape_of(option, value)]
        if len(shaped) == 1:  # the only one that it can be: its own message says what is wrong
            return _convert(shaped[0], value, path)
        for option in args:
            try:
                return _convert(option, value, path)
            except ConfigError:
                continue
    elif origin is Literal:
        if value in args and any(type(value) is type(a) and value == a for a in args):
            return value
        near = nearest(str(value), [str(a) for a in args]) if isinstance(value, str) else ""
        raise ConfigError(f"{path}: expected {_described(hint)}, got {_shown(value)}{near}")
    elif origin is tuple:
        if isinstance(value, Sequence) and not isinstance(value, str):
            if args[-1] is Ellipsis:
                return tuple(_convert(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
            if len(value) == len(args):
                return tuple(_convert(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
    elif hint is type(None):
        if value is None:
            return None
    elif hint is float:
        number = _number(value)
        if number is not None:
            return number
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif isinstance(value, hint):
        return value
    raise ConfigError(f"{path}: expected {_described(hint)}, got {_shown(value)}")


def _has_shape_of(hint: Any, value: Any) -> bool:
    """Whether a mapping meets a dataclass, or a list a tuple."""
    if isinstance(value, Mapping):
        return dataclasses.is_dataclass(hint)
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    return listed and typing.get_origin(hint) is tuple


def _number(value: Any) -> float | None:
    """A finite float, or None."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None


def _described(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_described(a) for a in args)
    if origin is Literal:
        return "one of " + ", ".join(str(a) for a in args)
    if origin is tuple:
        if args[-1] is Ellipsis:
            return f"a list of {_described(args[0])}"
        return f"a list of {len(args)} values ({', '.join(_described(a) for a in args)})"
    if dataclasses.is_dataclass(hint):
        return "a mapping of keys"
    names = {float: "a number", int: "a whole number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(hint, str(hint))


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def nearest(word: str, words: Any) -> str:
    """For the end of a message: the one of `words` that `word` may have meant, or all of them."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; valid: {', '.join(words)}"


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def require(condition: bool, key: str, expected: str, value: Any) -> None:
    """Raise a ConfigError for `key` unless `condition`; for `__post_init__` checks."""
    if not condition:
        raise ConfigError(f"{key}: expected {expected}, got {_shown(value)}")
