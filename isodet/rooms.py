"""isodet's packages under other names, and beside a program's own: `isodet.runtime`, and old names of modules.

Python takes the `models` that comes first on its path: the program's. `models` stays the program's, and submodules of
isodet's `models` are found beside it, as long as the two packages share no name of a submodule. The same holds for the
other rooms.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from isodet.errors import IsodetError
from isodet.old_names import MOVED, keep_old_names, moved

ROOMS = ("models", "runtime", "trainer", "export")
_HERE = Path(__file__).resolve().parents[1]
_shared: set[str] = set()
"""Rooms whose name is also that of a package of the program."""


class RoomError(IsodetError, ImportError):  # type: ignore[misc]  # both have a path
    """Two packages of one name that cannot be used together; the message names both."""


def find_rooms(*rooms: str) -> None:
    """Make modules such as `models.checkpoint` importable from isodet, also if the program has its own `models`.

    Raises `RoomError` where modules of the program hide those of isodet.
    """
    for room in rooms:
        ours = _HERE / room
        spec = sys.modules[room].__spec__ if room in sys.modules else importlib.util.find_spec(room)
        if spec is None:
            continue  # the import reports what is missing
        places = [str(Path(place).resolve()) for place in spec.submodule_search_locations or ()]
        if str(ours) in places:
            continue
        both = "both cannot be used in one program: rename yours, or take its folder off the path"
        advice = f"{both}; an exported .onnx needs no models" if room == "models" else both
        if not places:
            raise RoomError(f"{spec.origin} hides isodet's package {ours}; {advice}", path=spec.origin)
        names = [{module.name for module in pkgutil.iter_modules(folders)} for folders in (places, [str(ours)])]
        for name in sorted(set.intersection(*names) - {"__main__"}):
            hiding = PathFinder.find_spec(f"{room}.{name}", places)
            assert hiding is not None
            raise RoomError(f"{hiding.origin} hides isodet's {ours / name}; {advice}", path=hiding.origin)
        _shared.add(room)


class _Aliases:
    """The first finder: `isodet.runtime.x` is the module `runtime.x`, and not a second module from the same file."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        package, _, name = fullname.partition(".")
        room = name.partition(".")[0]
        if package != "isodet" or room not in ROOMS:
            return None
        find_rooms(room)
        if name in _shared:  # `runtime` is the program's package; isodet's is only `isodet.runtime`
            return PathFinder.find_spec(fullname, [str(_HERE)])
        spec = importlib.util.find_spec(name)
        return spec and ModuleSpec(
            fullname, _Alias(spec), origin=spec.origin, is_package=spec.submodule_search_locations is not None
        )


class _Alias(Loader):
    """Loads the module of `spec`, in the place of the module that was asked for."""

    def __init__(self, spec: ModuleSpec) -> None:
        self.spec = spec

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(self.spec.name)

    def get_code(self, fullname: str) -> Any:
        """For `python -m isodet.trainer`."""
        return getattr(self.spec.loader, "get_code")(self.spec.name)  # noqa: B009  (not every loader has it)


class _Others(Loader):
    """The last finder: isodet's modules beside those of a program's package of the same name, and moved modules."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        room, _, name = fullname.partition(".")
        if room in _shared and name and "." not in name:  # deeper modules are found by their parent
            return PathFinder.find_spec(fullname, [str(_HERE / room)])
        above = _HERE.joinpath(*fullname.split(".")[:-1])
        ours = fullname in MOVED and above in [Path(place).resolve() for place in path or ()]
        return ModuleSpec(fullname, self) if ours else None

    def exec_module(self, module: ModuleType) -> None:
        room, _, name = module.__name__.partition(".")
        homes = " and ".join(MOVED[module.__name__])
        module.__file__ = importlib.import_module(MOVED[module.__name__][0]).__file__
        if name in sys.modules[room].__all__:  # the module would replace the function
            raise ImportError(f"{room}.{name} is a function now: from {room} import {name}; its module is {homes}")
        keep_old_names(module.__name__)
        moved(module.__name__, homes)


def install() -> None:
    """Add the finders of this file to Python's."""
    if not any(isinstance(finder, _Aliases) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Aliases())
        sys.meta_path.append(_Others())
