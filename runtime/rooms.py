"""A program's own package `models` beside isodet's, which has the same name.

Python takes the one that comes first on its path: the program's. It stays the program's; what isodet needs of its own
`models` is found beside it, as long as no submodule of both has the same name.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from isodet.errors import IsodetError

_OURS = Path(__file__).resolve().parents[1] / "models"


class RoomError(IsodetError, ImportError):  # type: ignore[misc]  # ImportError's `path` is a text
    """Two packages of one name that cannot be told apart; the message names both."""


class _Submodules(MetaPathFinder):
    """Finds `models.x` among isodet's, after everybody else; what lies deeper is found by its parent."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != "models" or not name or "." in name:
            return None
        return PathFinder.find_spec(fullname, [str(_OURS)], target)


_FINDER = _Submodules()


def find_models() -> None:
    """Make `models.checkpoint` and the like those of isodet, also where the program has a `models` of its own. Raises
    `RoomError` where its modules hide ours.
    """
    loaded = sys.modules.get("models")
    spec = getattr(loaded, "__spec__", None) if loaded is not None else importlib.util.find_spec("models")
    if spec is None:
        return  # importing says what is missing
    places = [Path(place).resolve() for place in spec.submodule_search_locations or ()]
    if _OURS in places:
        return
    advice = "both cannot be used in one program: rename yours, or run an exported .onnx, which needs no models"
    if not places:
        raise RoomError(f"{spec.origin} hides isodet's package {_OURS}; {advice}", path=spec.origin)
    names = sorted({path.stem for path in _OURS.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()})
    for name in names:
        hiding = [p for place in places for p in (place / f"{name}.py", place / name / "__init__.py") if p.is_file()]
        if hiding and name != "__init__":
            raise RoomError(f"{hiding[0]} hides isodet's {_OURS / name}; {advice}", path=hiding[0])
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)
