"""The strict reader: it turns mappings, as YAML and JSON give them, into dataclasses.

It reads configurations and cards. An unknown key, a wrong type or a value out of range is a `ConfigError` that names
the dotted path and, for a key, the nearest valid one.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal, NewType, TypeVar, Union

from isodet.errors import ArgumentError, IsodetError

T = TypeVar("T")

CustomName = NewType("CustomName", str)
"""The name of a user's own part, `package.module:Name`; `models.custom.find` describes such parts."""


class ConfigError(IsodetError, ValueError):
    """A configuration that cannot be used; the message says where, what was expected and what to do.

    `key` is the dotted key, where there is one. A check in `__post_init__` begins its message with the field's name and
    a colon; `build` takes the key from there and puts the path above it in front.
    """

    def of_file(self, path: str | Path, where: str = "") -> ConfigError:
        """This error with the name of its file in front, and `where` in it."""
        self.args, self.path = (f"{path}: {where}{self}",), Path(path)
        return self


class UnknownKeyError(ConfigError):
    """An unknown key; `beside` lists the keys that are valid in its place."""

    beside: tuple[str, ...] = ()


def _unknown(key: str, beside: Iterable[str], everywhere: Sequence[str] = ()) -> UnknownKeyError:
    """The error names up to three keys of the same name in other places, or the nearest key beside it.

    everywhere: all keys of the config, dotted, where they are known.
    """
    last = key.rpartition(".")[2]
    same_name = [f"'{dotted}'" for dotted in everywhere if dotted.rpartition(".")[2] == last][:3]
    advice = f"; did you mean {' or '.join(same_name)}?" if same_name else nearest(last, beside)
    error = UnknownKeyError(f"unknown key '{key}'{advice}", key=key)
    error.beside = tuple(beside)
    return error


def build(kind: type[T], mapping: Any, path: str = "") -> T:
    """The dataclass `kind` from a plain mapping (as YAML or JSON give it); `path` is the dotted key of that mapping.

    A key that was renamed may have both names: `kind.OLD_NAMES` maps the old one to today's.

    Raises `ConfigError` with the key of the first value that is unknown, missing, of the wrong type or out of range.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    needed = {name for name, f in fields.items() if default_of(f) is dataclasses.MISSING}
    old_names: Mapping[str, str] = getattr(kind, "OLD_NAMES", {})
    if isinstance(mapping, Mapping):  # where a key is there with both names, the old one stays, and is unknown
        mapping = {old_names.get(k, k) if old_names.get(k) not in mapping else k: v for k, v in mapping.items()}
    try:
        values = converted({name: hints[name] for name in fields}, needed, mapping, path)
    except UnknownKeyError as error:
        if path:
            raise
        raise _unknown(str(error.key), error.beside, tuple(dotted_keys(kind))) from None
    try:
        return kind(**values)
    except ConfigError as error:  # of __post_init__, which does not know the path above
        _put_below(error, path, fields)
        raise
    except ArgumentError as error:  # of a class that users make themselves, so that it names itself before the field
        config_error = ConfigError(str(error).removeprefix(f"{kind.__name__}."))
        _put_below(config_error, path, fields)
        raise config_error from None


def _put_below(error: ConfigError, path: str, fields: Collection[str]) -> None:
    """Make `error`, which names one of `fields` or none, that of the mapping at `path`."""
    key = re.match(r"((\w+)[\w.\[\]]*):", f"{error.key or error}:")
    error.key = _join(path, key[1]) if key and key[2] in fields else path or None
    error.args = (f"{path}.{error}" if path else str(error),)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a dataclass's field, `dataclasses.MISSING` where it has none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def dotted_keys(kind: Any, path: str = "") -> Iterator[str]:
    """Every key of the dataclass `kind` and of those below it, as `a.b.c`."""
    for name, hint in typing.get_type_hints(kind).items():
        yield _join(path, name)
        for part in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(part):
                yield from dotted_keys(part, _join(path, name))


def converted(hints: Mapping[str, Any], needed: Set[str], mapping: Any, path: str) -> dict[str, Any]:
    """The values of `mapping` as the types that `hints` has for their keys; the `needed` keys must be there.

    Raises `ConfigError` as `build` does.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{path or 'config'}: expected a mapping of keys, got {_shown(mapping)}", key=path or None)
    for key in mapping:
        if key not in hints:
            raise _unknown(_join(path, key), hints)
    for name in hints:
        if name in needed and name not in mapping:
            key = _join(path, name)
            raise ConfigError(f"missing key '{key}' (expected {described(hints[name])})", key=key)
    return {name: _convert(hints[name], mapping[name], _join(path, name)) for name in hints if name in mapping}


def readable(hint: Any) -> bool:
    """Whether a mapping's values can be read as the annotated type `hint`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return all(readable(option) for option in args)
    if origin is tuple:
        return bool(args) and all(readable(a) for a in args if a is not Ellipsis)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return all(readable(h) for h in typing.get_type_hints(hint).values())
    return origin is Literal or hint in (bool, int, float, str, type(None))


def to_mapping(config: Any) -> Any:
    """The plain form of a config: dicts, lists and scalars only, so YAML and JSON can write it."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_mapping(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {key: to_mapping(value) for key, value in config.items()}
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
        if CustomName in args and isinstance(value, str):  # one of ours, or a part named by its module
            known_names = next(option for option in args if option is not CustomName)
            return check_custom_name(value, path) if ":" in value else _convert(known_names, value, path)
        shaped = [option for option in args if _has_shape_of(option, value)]
        if len(shaped) == 1:  # the only possible type: its own message says what is wrong
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
        raise ConfigError(f"{path}: expected {described(hint)}, got {_shown(value)}{near}", key=path)
    elif origin is tuple:
        if isinstance(value, Sequence) and not isinstance(value, str):
            if args[-1] is Ellipsis:
                return tuple(_convert(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
            if len(value) == len(args):
                return tuple(_convert(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
    elif hint is float:
        number = _number(value)
        if number is not None:
            return number
    elif origin is Mapping:
        if isinstance(value, Mapping):
            return {str(key): _convert(args[1], item, _join(path, key)) for key, item in value.items()}
    elif typing.is_typeddict(hint):
        return converted(typing.get_type_hints(hint), hint.__required_keys__, value, path)
    elif hint is Any:  # such as arguments of a part, which are read where its signature is known
        return value
    elif hint is CustomName:
        if isinstance(value, str):
            return check_custom_name(value, path)
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{path}: expected {described(hint)}, got {_shown(value)}", key=path)


def check_custom_name(value: str, path: str) -> CustomName:
    """`value` as the name of an own part; a ConfigError at `path` where it is no `package.module:Name`."""
    module, _, name = value.partition(":")
    if not (name.isidentifier() and all(word.isidentifier() for word in module.split("."))):
        raise ConfigError(f"{path}: your own part is named package.module:Name, got {value!r}", key=path)
    return CustomName(value)


def _has_shape_of(hint: Any, value: Any) -> bool:
    """Whether a mapping meets a type of mappings, or a list a tuple."""
    if isinstance(value, Mapping):
        return dataclasses.is_dataclass(hint) or typing.is_typeddict(hint) or typing.get_origin(hint) is Mapping
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    return listed and typing.get_origin(hint) is tuple


def _number(value: Any) -> float | None:
    """A finite float, or None."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number that no float can be
        return None


def described(hint: Any) -> str:
    """The type `hint` in words, for "expected ..."."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(described(a) for a in args)
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(str(a) for a in args)
    if origin is tuple:
        if args[-1] is Ellipsis:
            return f"a list of {described(args[0])}"
        return f"a list of {len(args)} values ({', '.join(described(a) for a in args)})"
    if dataclasses.is_dataclass(hint) or origin is Mapping or typing.is_typeddict(hint) or hint is dict:
        return "a mapping of keys"
    names = {float: "a number", int: "a whole number", str: "text", bool: "true or false", type(None): "null"}
    return "package.module:Name of your own part" if hint is CustomName else names.get(hint, str(hint))


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        text = "a number of thousands of digits"
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def nearest(word: str, words: Any) -> str:
    """The end of a message: the one of `words` that `word` may have meant, or all of them."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; valid: {', '.join(words)}"


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def require(condition: bool, key: str, expected: str, value: Any) -> None:
    """Raise a ConfigError for `key` unless `condition`; for `__post_init__` checks."""
    if not condition:
        raise ConfigError(f"{key}: expected {expected}, got {_shown(value)}", key=key)


def require_defaults(config: Any, apart_from: tuple[str, ...], reason: str) -> None:
    """Raise a ConfigError for the first key of `config`, except `apart_from`, that does not have its default value."""
    for f in dataclasses.fields(config):
        if f.name not in apart_from and getattr(config, f.name) != f.default:
            raise ConfigError(f"{f.name}: {reason}; leave it at {to_mapping(f.default)}", key=f.name)
