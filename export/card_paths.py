"""Removing private paths from files that are handed on: only names, and paths relative to the checkpoint, remain.

A checkpoint keeps absolute paths, because its run continues with them. A graph, an engine's sidecar and a report are
given to others, who must not learn the folders of a home, or names of projects and customers, from them.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from runtime.card.card import Card

_LEVELS = 2  # from runs/<name>/ to the folder that holds runs/ and, often, the data


def handed_on(card: Card, folder: Path) -> Card:
    """`card` for an artifact of the checkpoint in `folder`.

    Paths are relative to `folder` where they lie beside it or up to two levels above, else only their names are kept.
    """
    known = private_folders(folder)
    sections = ("model", "training", "metrics", "verification")
    return replace(card, **{name: without_paths(getattr(card, name), known, folder) for name in sections})


def private_folders(*folders: Path) -> tuple[str, ...]:
    """Folders whose paths must not remain in a text: `folders`, the working, the home and the temporary folder."""
    private = [*folders, Path.cwd(), Path(tempfile.gettempdir())]
    with contextlib.suppress(RuntimeError):  # a user without one
        private.append(Path.home())
    names = {str(form) for path in private for form in (path, path.absolute(), path.resolve())}
    return tuple(sorted((name for name in names if len(name) > 1 and os.path.isabs(name)), key=len, reverse=True))


def without_paths(value: Any, known: Iterable[str], folder: Path | None = None) -> Any:
    """`value` (of JSON) without the `known` folders in its texts: of a path below one of them only the name remains.

    folder: a text that is an absolute path becomes relative to it, or a name; None leaves paths below no known folder.
    """
    if isinstance(value, dict):
        return {key: without_paths(item, known, folder) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(item, known, folder) for item in value]
    if not isinstance(value, str):
        return value
    if folder is not None and _is_path(value):
        return _relative(folder, value)
    for name in known:
        # Up to the last part of a path, which may be a folder itself.
        value = re.sub(re.escape(name) + r"(?:[/\\]+(?:[^\s'\"<>:;,()/\\]+[/\\]+)*|(?![\w.-]))", "", value)
    return value


def _is_path(text: str) -> bool:
    return "\n" not in text and (PurePosixPath(text).is_absolute() or bool(PureWindowsPath(text).drive))


def _relative(folder: Path, text: str) -> str:
    """The absolute path `text` relative to `folder`, or its name where that would tell too much."""
    name = PureWindowsPath(text).name or PurePosixPath(text).name
    if not os.path.isabs(text):  # a path of another operating system
        return name
    start, path = folder.resolve(), Path(text).resolve()
    shared = Path(os.path.commonpath([start, path])) if start.drive == path.drive else Path(start.anchor)
    climbs = len(start.parts) - len(shared.parts)
    # From above the home folder, the relative path would contain the name of the home.
    if climbs > _LEVELS or shared == Path(shared.anchor) or _is_above_home(shared):
        return name
    return Path(os.path.relpath(path, start)).as_posix()


def _is_above_home(path: Path) -> bool:
    try:
        return path in Path.home().resolve().parents
    except RuntimeError:
        return False
