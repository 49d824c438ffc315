"""Command lines from dataclasses: a command is a dataclass, its fields are the arguments, its docstring is the help.

The type of a field decides how its argument is read. `name: text` in the docstring is its help (`isodet.field_docs`),
and the default is added. The paragraphs before these describe the command, those after them are its examples. A field
may be a dataclass itself, such as `StreamOptions`: a table of flags names those of its fields that become arguments.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from isodet.errors import IsodetError
from isodet.field_docs import field_docs

Flag = tuple[str, dict[str, Any]]

FORMATTER = partial(argparse.RawDescriptionHelpFormatter, max_help_position=30, width=100)
"""argparse's layout for help texts with examples."""


def flag(name: str = "", **keywords: Any) -> Flag:
    """What the command line changes for a field: in `Annotated[type, flag(...)]`, or in a table by field name.

    `name`: a flag, or without dashes a positional argument; by default it follows from the field. `keywords` replace
    argparse's keywords that follow from the field. `either`: flags that exclude each other, each with value and help.
    """
    return name, keywords


def command_parser(program: str, text: str | None, commands: Mapping[str, type[Any]]) -> argparse.ArgumentParser:
    """The parser of `program`, for `exit_status`. A command is a dataclass whose `run()` returns the exit status.

    text: the purpose of `program`; examples follow after an empty line.
    """
    description, _, epilog = (text or "").partition("\n\n")
    parser = argparse.ArgumentParser(program, description=description, epilog=epilog, formatter_class=FORMATTER)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, kind in commands.items():
        long, epilog = _description_and_examples(kind)
        short = long[:1].lower() + long[1:].partition("\n")[0].rstrip(".")
        sub = subparsers.add_parser(name, help=short, description=long, epilog=epilog, formatter_class=FORMATTER)
        sub.set_defaults(run=partial(_run, kind, sub, dict(_add_fields(sub, kind))))
    return parser


def _run(kind: type[Any], parser: argparse.ArgumentParser, flags: dict[str, str], parsed: argparse.Namespace) -> int:
    try:
        command = _instance(kind, vars(parsed))
    except (IsodetError, ValueError, RuntimeError) as error:
        field, _, reason = " ".join(str(error).split()).partition(": ")
        names = {field.rpartition(".")[2], f"--{field}"}
        spelling = next((flag for key, flag in flags.items() if names & {key.rpartition(".")[2], flag}), None)
        parser.error(f"argument {spelling}: {reason}" if spelling and reason else str(error))
    return int(command.run())


def _instance(kind: type[Any], parsed: Mapping[str, Any], prefix: str = "", base: Any = None) -> Any:
    """The dataclass with the values of `parsed`, by dotted name; all other values are those of `base`."""
    values = {}
    for field in dataclasses.fields(kind):
        key = prefix + field.name
        if key in parsed:
            values[field.name] = tuple(parsed[key]) if isinstance(parsed[key], list) else parsed[key]
        elif any(name.startswith(f"{key}.") for name in parsed):
            values[field.name] = _instance(type(field.default), parsed, f"{key}.", field.default)
    return kind(**values) if base is None else dataclasses.replace(base, **values)


def _description_and_examples(kind: type[Any]) -> tuple[str, str]:
    """The part of the docstring before the fields, and the parts of it and its bases' after them."""
    names = "|".join(field.name for field in dataclasses.fields(kind))
    before, after = "", []
    for owner in kind.__mro__[:-1]:
        paragraphs = inspect.cleandoc(owner.__doc__ or "").split("\n\n")
        of_fields = [i for i, paragraph in enumerate(paragraphs) if re.match(f"({names}): ", paragraph)]
        before = before or "\n\n".join(paragraphs[: min(of_fields, default=None)])
        after += paragraphs[of_fields[-1] + 1 :] if of_fields else []
    return before, "\n\n".join(after)


def _add_fields(
    parser: Any, kind: type[Any], table: Mapping[str, Flag] | None = None, base: Any = None, prefix: str = ""
) -> Iterator[tuple[str, str]]:
    """Add the fields of `kind`, those of its bases last; yields the dotted name and the flag of each."""
    texts, hints = field_docs(kind), get_type_hints(kind, include_extras=True)
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    own_first = dict.fromkeys(name for owner in kind.__mro__ for name in owner.__dict__.get("__annotations__", ()))
    for name in own_first if table is None else table:
        hint, *extras = get_args(hints[name]) if get_origin(hints[name]) is Annotated else (hints[name],)
        default = defaults[name] if base is None else getattr(base, name)
        if dataclasses.is_dataclass(default):
            group = parser.add_argument_group(extras[1]) if extras[1:] else parser
            yield from _add_fields(group, type(default), extras[0], default, f"{prefix}{name}.")
        else:
            changes = table[name] if table is not None else extras[0] if extras else flag()
            yield prefix + name, _add(parser, prefix + name, hint, changes, default, texts.get(name, ""))


def _add(parser: Any, key: str, hint: Any, changes: Flag, default: Any, text: str) -> str:
    """Add the argument of one field, whose value goes to `key`; returns its flag."""
    field, keywords = key.rpartition(".")[2], dict(changes[1])
    name = changes[0] or ("--no-" if default is True else "--") + field.replace("_", "-")
    options: dict[str, Any] = {"dest": key, "default": argparse.SUPPRESS}  # the dataclass has the default
    if "either" in keywords:
        group = parser.add_mutually_exclusive_group()
        for name, (value, text) in keywords["either"].items():
            group.add_argument(name, action="store_const", const=value, help=text, **options)
        return name
    text, required = keywords.pop("help", text), default is dataclasses.MISSING
    if not (required or isinstance(default, bool) or default in (None, ()) or "default" in text):
        shown = default if isinstance(default, tuple) else (default,)
        text += f" (default: {','.join(str(value).removesuffix('.0') for value in shown)})"
    options["help"] = text.replace("%", "%%")
    if hint is bool:
        parser.add_argument(name, **{"action": f"store_{str(not default).lower()}"} | options | keywords)
        return name
    if get_origin(hint) in (Union, UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not NoneType]
        hint = Path if Path in kinds else kinds[0]
    positional, several = not name.startswith("-"), get_origin(hint) is tuple
    if several and (positional or not {"nargs", "action"}.isdisjoint(keywords)):
        hint = get_args(hint)[0]
    options |= {"choices": get_args(hint) if get_origin(hint) is Literal else None} | keywords
    options["type"] = partial(_checked, keywords.get("type") or partial(_read, options["choices"], hint), field)
    metavar = name if positional else None if options["choices"] else name.strip("-").upper()
    options.setdefault("metavar", metavar)
    if positional:
        nargs = ("+" if required else "*") if several else None if required else "?"
        options = {"nargs": nargs} | options | {"default": None if required else default}
    else:
        options["required"] = required
    parser.add_argument(options.pop("dest") if positional else name, **options)
    return name


def _checked(read: Callable[[str], Any], field: str, text: str) -> Any:
    """`read(text)`, where argparse shows the message of a ValueError."""
    try:
        return read(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix(f"{field}: ")) from None


def _read(choices: tuple[Any, ...] | None, hint: Any, text: str) -> Any:
    """`text` as `hint`: one of `choices`, a number, a name, a path, or a tuple with commas between its values."""
    if choices is not None:
        values = {str(choice): choice for choice in choices}
        if text in values:
            return values[text]
        import difflib  # late: only an error needs it

        near = "".join(f"; did you mean {name!r}?" for name in difflib.get_close_matches(text, values, 1))
        raise ValueError(f"expected {', '.join(values)}; got {text!r}{near}")
    kinds = get_args(hint)
    parts = [part for part in map(str.strip, text.split(",")) if part or kinds[0] is not str] if kinds else [text]
    kind = kinds[0] if kinds else hint
    count, noun = len(kinds), {int: "whole number", float: "number"}.get(kind, "name")
    try:
        read = tuple(kind(part) for part in parts)
    except ValueError:
        read = ()
    if not read or (kinds and kinds[-1] is not Ellipsis and len(read) != count):
        many = f"{'' if Ellipsis in kinds else f'{count} '}{noun}s with commas between"
        raise ValueError(f"expected {many if kinds else f'a {noun}'}, got {text!r}")
    return read if kinds else read[0]


def number(expected: str, legal: Callable[[float], bool], kind: type[float] = float) -> Callable[[str], Any]:
    """A reader of numbers. For text that is not a `legal` number it raises ValueError with what is `expected`."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not legal(value):
            raise ValueError(f"expected {expected}, got {text!r}")
        return value

    return read


count = number("a whole number of at least 1", lambda value: value >= 1, int)
