"""A user's own parts, named in a configuration as `package.module:Name`: found, checked, given their arguments.

Nothing is called before it has been checked: a backbone or a neck is a class of `torch.nn.Module`, anything else a
plain function; what isodet gives comes by position, in the number that `Kind.given` lists, and every argument of
the part is keyword-only and annotated with a type that a configuration can hold. `models.custom_trial` then runs it.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import pkgutil
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from torch import nn

from isodet.strict import ConfigError, check_own_name, converted, nearest, readable, to_mapping

_NOT_THEIRS = ("<", *(str(Path(__file__).parents[2] / room) + os.sep for room in ("models", "trainer")))
_LIBRARIES = {"torch", "numpy", "cv2", "importlib"}


@dataclass(frozen=True)
class Kind:
    """One kind of part: what it is called, which key names it, what isodet gives it by position."""

    noun: str
    section: str
    key: str
    given: tuple[str, ...]
    module: bool = False
    """A class of `torch.nn.Module`; otherwise a function."""


BACKBONE = Kind("backbone", "model.backbone", "name", (), module=True)
NECK = Kind("neck", "model.neck", "kind", ("c_in", "channels", "levels"), module=True)
ASSIGNER = Kind("assigner", "model.assign", "kind", ("priors", "gt_boxes_xyxy", "gt_valid"))
BOX_LOSS = Kind("box loss", "model.box", "loss", ("pred_xyxy", "target_xyxy"))
CLASS_LOSS = Kind("class loss", "model.loss", "cls", ("logits", "targets"))
AUGMENTATION = Kind("augmentation", "augment.own", "name", ("image", "boxes_xyxy", "labels", "rng"))


class OwnPartMissing(ConfigError):
    """The module of a part is not where Python looks."""


@dataclass(frozen=True)
class OwnPart:
    """A part that passed the checks, and its arguments."""

    kind: Kind
    name: str
    target: Callable[..., Any]
    values: Mapping[str, Any]

    @property
    def where(self) -> str:
        """For the beginning of a message."""
        return f"{self.kind.section}.{self.kind.key}: {self.name}"

    def __call__(self, *given: Any) -> Any:
        return self.target(*given, **self.values)

    def arguments(self) -> dict[str, Any]:
        """All arguments, defaults too, as a configuration writes them."""
        plain: dict[str, Any] = to_mapping(self.values)
        return plain


def own_part(kind: Kind, name: str, arguments: Mapping[str, Any] | None) -> OwnPart:
    """The part `name`, to be called with what isodet gives. Raises `ConfigError` naming the key and the reason."""
    target = _target(kind, name)
    return OwnPart(kind, name, target, _values(kind, name, target, arguments or {}))


def look_in(folders: Iterable[str | Path]) -> None:
    """Let Python find modules in `folders` too, after all other places, in this process and in those it spawns."""
    for folder in folders:
        path = str(Path(folder).resolve())
        if path not in sys.path:
            sys.path.append(path)


def require_module_of(folders: Sequence[str | Path], name: str, where: str) -> None:
    """Raise `ConfigError` where a module of the part `name` lies in `folders`, but Python has another one."""
    top = name.partition(":")[0].split(".")[0]
    importlib.invalidate_caches()
    mine = PathFinder.find_spec(top, [str(Path(folder).resolve()) for folder in folders])
    other = _origin(sys.modules[top]) if top in sys.modules else getattr(importlib.util.find_spec(top), "origin", None)
    if mine is not None and mine.origin and other and Path(mine.origin).resolve() != Path(other).resolve():
        raise ConfigError(f"{where}: {mine.origin} is hidden by another module called {top} ({other}); rename yours")


def require_environment(names: Iterable[str]) -> None:
    """Raise `OwnPartMissing` for the first of `names` whose module is not imported, installed or on PYTHONPATH.

    For parts that a checkpoint names. The current folder, where Python puts it first by itself (with -m, -c, in a
    notebook), is not searched: who unpacks a checkpoint and works beside it has not installed anything.
    """
    importlib.invalidate_caches()
    for name in names:
        top = check_own_name(name, "model").partition(":")[0].split(".")[0]
        _refuse_standard(top, name)
        if top in sys.modules:
            continue
        first, rest = sys.path[:1], sys.path[1:]
        implicit = bool(first) and first[0] in ("", str(Path.cwd())) and not getattr(sys.flags, "safe_path", False)
        others = [finder for finder in sys.meta_path if finder is not PathFinder]  # editable installations
        elsewhere = PathFinder.find_spec(top, rest) or any(finder.find_spec(top, None) for finder in others)
        if not (elsewhere if implicit else importlib.util.find_spec(top)):
            raise OwnPartMissing(f"the module {top} of {name} is not imported, installed or on PYTHONPATH")


def failure(error: BaseException) -> str:
    """An error of a part's own code in one line: what, and where in that code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(_NOT_THEIRS) and not _LIBRARIES & set(Path(f.filename).parts)]
    place = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{place}"


# ---------------------------------------------------------------------------------------------
# the module and what it holds


def _target(kind: Kind, name: str) -> Callable[..., Any]:
    where = f"{kind.section}.{kind.key}: {name}"
    module_name, _, attribute = name.partition(":")
    module = _module(module_name, where)
    if not hasattr(module, attribute):
        offered = [n for n, value in vars(module).items() if not n.startswith("_") and _fits(kind, value)]
        what = f"{nearest(attribute, offered)}" if offered else f"; it has nothing that could be a {kind.noun}"
        raise ConfigError(f"{where}: the module {module_name} ({_origin(module)}) has no {attribute}{what}")
    target = getattr(module, attribute)
    if not _fits(kind, target):
        wanted = "a class of torch.nn.Module" if kind.module else "a plain Python function"
        raise ConfigError(f"{where}: expected {wanted} for the {kind.noun}, but this is {_described(target)}")
    _check_signature(kind, where, target)
    return target


def _fits(kind: Kind, value: Any) -> bool:
    if kind.module:
        return isinstance(value, type) and issubclass(value, nn.Module)
    return (
        isinstance(value, types.FunctionType)
        and not inspect.isgeneratorfunction(value)
        and not inspect.iscoroutinefunction(value)
    )


def _described(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, types.ModuleType):
        return "a module"
    if inspect.isgeneratorfunction(value) or inspect.iscoroutinefunction(value):
        return "a generator or a coroutine"
    return f"of type {type(value).__name__}"


def _module(name: str, where: str) -> types.ModuleType:
    top = name.split(".")[0]
    _refuse_standard(top, where)
    if name not in sys.modules:
        importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise OwnPartMissing(f"{where}: {_not_found(error.name)}") from None
        raise ConfigError(f"{where}: its module could not be imported: {failure(error)}") from error
    except (Exception, SystemExit) as error:  # whatever somebody's module does while it is imported
        raise ConfigError(f"{where}: its module could not be imported: {failure(error)}") from error


def _refuse_standard(top: str, where: str) -> None:
    if top in sys.stdlib_module_names or top == "__main__":
        raise ConfigError(
            f"{where}: {top} is Python's own module and has no parts of a detector; a part of yours is in a file "
            "of its own, under another name, where loader processes find it too"
        )


def _not_found(missing: str) -> str:
    above, _, last = missing.rpartition(".")
    package = sys.modules.get(above)
    folders = list(getattr(package, "__path__", [])) if above else [p or str(Path.cwd()) for p in sys.path]
    known = sorted({entry.name for entry in pkgutil.iter_modules(folders)})
    near = nearest(last, known)
    near = near if near.startswith("; did") else ""
    shown = [f for f in folders if Path(f).is_dir() and not Path(f).name.startswith(("lib-dynload", "python3"))]
    return f"there is no module {missing} in {', '.join(shown)}{near}"


def _origin(module: types.ModuleType) -> str | None:
    return getattr(module, "__file__", None)


# ---------------------------------------------------------------------------------------------
# signature and arguments


def _check_signature(kind: Kind, where: str, target: Callable[..., Any]) -> None:
    """Raise `ConfigError` unless isodet can call `target` and a configuration can give its arguments."""
    called = f"{target.__name__}({', '.join([*kind.given, '*, your arguments'])})"
    positional = []
    for parameter in _parameters(target):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigError(f"{where}: *args and **kwargs hide a typo; expected {called}")
        if parameter.kind is not parameter.KEYWORD_ONLY:
            positional.append(parameter.name)
        elif parameter.annotation is parameter.empty:
            raise ConfigError(f"{where}: annotate its argument {parameter.name}, as in {parameter.name}: float = 1.0")
    if len(positional) != len(kind.given):
        count = f"{len(kind.given)} ({', '.join(kind.given)})" if kind.given else "nothing"
        raise ConfigError(
            f"{where}: isodet gives the {kind.noun} {count} by position, but it takes {len(positional)}"
            f"{' (' + ', '.join(positional) + ')' if positional else ''}; expected {called}: arguments of your own "
            "stand behind a *"
        )
    for name, hint in _hints(target, where).items():
        if not readable(hint):
            raise ConfigError(
                f"{where}: its argument {name} has the type {hint}, which no configuration can hold; use bool, int, "
                "float, str, Literal, tuple[...], a dataclass of these, or a union"
            )


def _parameters(target: Callable[..., Any]) -> list[inspect.Parameter]:
    if isinstance(target, type):
        return list(inspect.signature(target.__init__).parameters.values())[1:]  # type: ignore[misc]
    return list(inspect.signature(target).parameters.values())


def _hints(target: Callable[..., Any], where: str) -> dict[str, Any]:
    """Types of the keyword-only parameters."""
    try:
        hints = typing.get_type_hints(target.__init__ if isinstance(target, type) else target)  # type: ignore[misc]
    except Exception as error:  # evaluating somebody's annotations
        raise ConfigError(f"{where}: the annotations of its arguments cannot be read: {error}") from error
    return {p.name: hints[p.name] for p in _parameters(target) if p.kind is p.KEYWORD_ONLY}


def _values(kind: Kind, name: str, target: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    path = f"{kind.section}.arguments"
    hints = _hints(target, f"{kind.section}.{kind.key}: {name}")
    if arguments and not hints:
        raise ConfigError(f"{path}: {name} takes no arguments, got {', '.join(map(str, arguments))}")
    defaults = {p.name: p.default for p in _parameters(target) if p.name in hints and p.default is not p.empty}
    values = converted(hints, hints.keys() - defaults.keys(), arguments, path)
    try:
        filled = converted(hints, set(), to_mapping({k: v for k, v in defaults.items() if k not in values}), path)
        json.dumps(to_mapping(filled))
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{error}; this is the default in {name}, and does not fit its annotation") from None
    return {key: values[key] if key in values else filled[key] for key in hints}
