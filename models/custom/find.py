"""Finding and checking custom parts, which a configuration names as `package.module:Name`.

A part is checked before it is called. A backbone or a neck is a subclass of `torch.nn.Module`, any other part a plain
function. isodet passes the inputs in `Kind.given` by position. The part's own arguments are keyword-only, and annotated
with types that a configuration can hold. Afterwards `models.custom_trial` runs it.
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

import torch
from torch import nn

from isodet.strict import ConfigError, check_custom_name, converted, nearest, readable, to_mapping

_ISODET = ("<", *(str(Path(__file__).parents[2] / room) + os.sep for room in ("models", "trainer")))
_LIBRARIES = {"torch", "numpy", "cv2", "importlib"}


@dataclass(frozen=True)
class Kind:
    """One kind of custom part.

    noun: what messages call it. section, key: where a configuration names it. given: the inputs that isodet passes by
    position. module: it is a subclass of `torch.nn.Module`, else a function.
    """

    noun: str
    section: str
    key: str
    given: tuple[str, ...]
    module: bool = False

    def where(self, name: str) -> str:
        """The start of a message about the part `name`."""
        return f"{self.section}.{self.key}: {name}"


BACKBONE = Kind("backbone", "model.backbone", "name", (), module=True)
NECK = Kind("neck", "model.neck", "kind", ("c_in", "channels", "levels"), module=True)
ASSIGNER = Kind("assigner", "model.assign", "kind", ("priors", "gt_boxes_xyxy", "gt_valid"))
BOX_LOSS = Kind("box loss", "model.box", "loss", ("pred_xyxy", "target_xyxy"))
CLASS_LOSS = Kind("class loss", "model.loss", "cls", ("logits", "targets"))
AUGMENTATION = Kind("augmentation", "augment.own", "name", ("image", "boxes_xyxy", "labels", "rng"))


class CustomPartMissing(ConfigError):
    """Python cannot find the module of a part."""


@dataclass(frozen=True)
class CustomPart:
    """A part that passed the checks, and its arguments."""

    kind: Kind
    name: str
    target: Callable[..., Any]
    values: Mapping[str, Any]

    @property
    def where(self) -> str:
        """The start of a message about this part."""
        return self.kind.where(self.name)

    def __call__(self, *given: Any) -> Any:
        """The part's result. Raises `ConfigError` with the file and line of an error in the part's code."""
        try:
            return self.target(*given, **self.values)
        except torch.OutOfMemoryError:
            raise  # a batch too large is not the part's fault
        except Exception as error:  # custom code can raise anything
            raise ConfigError(f"{self.where}: {failure(error)}") from error

    def arguments(self) -> dict[str, Any]:
        """All arguments, including defaults, as a configuration writes them."""
        plain: dict[str, Any] = to_mapping(self.values)
        return plain


def custom_part(kind: Kind, name: str, arguments: Mapping[str, Any] | None) -> CustomPart:
    """The part `name` with its arguments, ready to be called. Raises `ConfigError` naming the key and the reason."""
    target = _target(kind, name)
    hints = _argument_types(kind, name, target)
    path = f"{kind.section}.arguments"
    if arguments and not hints:
        raise ConfigError(f"{path}: {name} takes no arguments, got {', '.join(map(str, arguments))}")
    defaults = {p.name: p.default for p in _parameters(target) if p.name in hints and p.default is not p.empty}
    values = converted(hints, hints.keys() - defaults.keys(), arguments or {}, path)
    try:
        defaults = converted(hints, set(), to_mapping({k: v for k, v in defaults.items() if k not in values}), path)
        json.dumps(to_mapping(defaults))
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{error}; this is the default in {name}, and does not fit its annotation") from None
    return CustomPart(kind, name, target, {key: values[key] if key in values else defaults[key] for key in hints})


def look_in(folders: Iterable[str | Path]) -> None:
    """Append `folders` to the module search path of this process and of processes that it spawns."""
    sys.path += [path for path in (str(Path(folder).resolve()) for folder in folders) if path not in sys.path]


def require_module_of(folders: Sequence[str | Path], name: str, where: str) -> None:
    """Raise `ConfigError` if the module of the part `name` is in `folders`, but Python finds another of that name."""
    top = name.partition(":")[0].split(".")[0]
    importlib.invalidate_caches()
    spec = PathFinder.find_spec(top, [str(Path(folder).resolve()) for folder in folders])
    file = _file(sys.modules[top]) if top in sys.modules else getattr(importlib.util.find_spec(top), "origin", None)
    if spec is not None and spec.origin and file and Path(spec.origin).resolve() != Path(file).resolve():
        raise ConfigError(f"{where}: {spec.origin} is hidden by another module called {top} ({file}); rename yours")


def require_environment(names: Iterable[str]) -> None:
    """Raise `CustomPartMissing` for the first of `names` whose module is not imported, installed or on PYTHONPATH.

    This is for parts that a checkpoint names. The current folder is not searched where Python put it on the path by
    itself (with -m, -c, in a notebook): code that was unpacked with a checkpoint must not run unasked.
    """
    importlib.invalidate_caches()
    for name in names:
        top = check_custom_name(name, "model").partition(":")[0].split(".")[0]
        _refuse_standard(top, name)
        if top in sys.modules:
            continue
        first, rest = sys.path[:1], sys.path[1:]
        implicit = bool(first) and first[0] in ("", str(Path.cwd())) and not getattr(sys.flags, "safe_path", False)
        finders = [finder for finder in sys.meta_path if finder is not PathFinder]  # editable installations
        installed = PathFinder.find_spec(top, rest) or any(finder.find_spec(top, None) for finder in finders)
        if not (installed if implicit else importlib.util.find_spec(top)):
            raise CustomPartMissing(f"the module {top} of {name} is not imported, installed or on PYTHONPATH")


def failure(error: BaseException) -> str:
    """An error of a part's own code in one line: the error, and the file and line in that code."""
    frames = traceback.extract_tb(error.__traceback__)
    users = [f for f in frames if not f.filename.startswith(_ISODET) and not _LIBRARIES & set(Path(f.filename).parts)]
    place = f" ({users[-1].filename}:{users[-1].lineno})" if users else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{place}"


# ---------------------------------------------------------------------------------------------
# the module, its attribute, and the signature


def _target(kind: Kind, name: str) -> Callable[..., Any]:
    where = kind.where(name)
    module_name, _, attribute = name.partition(":")
    module = _module(module_name, where)
    if not hasattr(module, attribute):
        offered = [n for n, value in vars(module).items() if not n.startswith("_") and _fits(kind, value)]
        hint = nearest(attribute, offered) if offered else f"; it has nothing that could be a {kind.noun}"
        raise ConfigError(f"{where}: the module {module_name} ({_file(module)}) has no {attribute}{hint}")
    target = getattr(module, attribute)
    if not _fits(kind, target):
        expected = "a class of torch.nn.Module" if kind.module else "a plain Python function"
        got = f"the class {target.__name__}" if isinstance(target, type) else f"of type {type(target).__name__}"
        raise ConfigError(f"{where}: expected {expected} for the {kind.noun}, but this is {got}")
    return target


def _fits(kind: Kind, value: Any) -> bool:
    if kind.module:
        return isinstance(value, type) and issubclass(value, nn.Module)
    return isinstance(value, types.FunctionType)


def _module(name: str, where: str) -> types.ModuleType:
    _refuse_standard(name.split(".")[0], where)
    if name not in sys.modules:
        importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # importing custom code can raise anything
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise CustomPartMissing(f"{where}: there is no module {_places(str(error.name))}") from None
        raise ConfigError(f"{where}: its module could not be imported: {failure(error)}") from error


def _places(missing: str) -> str:
    """The name of a `missing` module, the folders that were searched, and a module of a similar name."""
    package, _, last = missing.rpartition(".")
    folders = list(sys.modules[package].__path__) if package else [path or str(Path.cwd()) for path in sys.path]
    near = nearest(last, sorted({entry.name for entry in pkgutil.iter_modules(folders)}))
    shown = [f for f in folders if Path(f).is_dir() and not Path(f).name.startswith(("lib-dynload", "python3"))]
    return f"{missing} in {', '.join(shown)}{near if near.startswith('; did') else ''}"


def _refuse_standard(top: str, where: str) -> None:
    if top in sys.stdlib_module_names or top == "__main__":
        raise ConfigError(
            f"{where}: {top} is Python's own module and has no parts of a detector; a part of yours is in a file "
            "of its own, under another name, where loader processes find it too"
        )


def _file(module: types.ModuleType) -> str | None:
    return getattr(module, "__file__", None)


def _parameters(target: Callable[..., Any]) -> list[inspect.Parameter]:
    if isinstance(target, type):
        return list(inspect.signature(target.__init__).parameters.values())[1:]  # type: ignore[misc]
    return list(inspect.signature(target).parameters.values())


def _argument_types(kind: Kind, name: str, target: Callable[..., Any]) -> dict[str, Any]:
    """Types of the part's own arguments. Raises `ConfigError` for a signature that isodet cannot call."""
    parameters, where = _parameters(target), kind.where(name)
    arguments = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    positional = len(parameters) - len(arguments)
    open_ended = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
    if open_ended or positional != len(kind.given) or any(p.annotation is p.empty for p in arguments):
        raise ConfigError(
            f"{where}: expected {target.__name__}({', '.join([*kind.given, '*, your arguments'])}), with each of your "
            f"arguments annotated, as in scale: float = 1.0, and no *args or **kwargs, which hide a typo; got "
            f"{target.__name__}({', '.join(map(str, parameters))})"
        )
    try:
        hints = typing.get_type_hints(target.__init__ if isinstance(target, type) else target)  # type: ignore[misc]
    except Exception as error:  # evaluating annotations can raise anything
        raise ConfigError(f"{where}: the annotations of its arguments cannot be read: {error}") from error
    for p in arguments:
        if not readable(hints[p.name]):
            raise ConfigError(
                f"{where}: its argument {p.name} has the type {hints[p.name]}, which no configuration can hold; use "
                "bool, int, float, str, Literal, tuple[...], a dataclass of these, or a union"
            )
    return {p.name: hints[p.name] for p in arguments}
