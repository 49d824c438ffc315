"""Paths in what leaves this machine: names, and places beside the checkpoint, but no folder of who trained.

A checkpoint keeps its absolute paths, with which its run goes on. A graph, an engine's sidecar and a report are handed
on, and their readers would learn the folders of a home and the names of projects and customers.
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

    Paths are relative to `folder` where they lie beside it or up to two levels above, else they are names alone.
    """
    known = private_folders(folder)

    def plain(value: Any) -> Any:
        return without_paths(value, known, folder)

    return replace(
        card, model=plain(card.model), training=plain(card.training), metrics=plain(card.metrics),
        verification=plain(card.verification),
    )  # fmt: skip


def private_folders(*folders: Path) -> tuple[str, ...]:
    """Folders that a text may name in passing: the given ones, the working folder, the home and the temporary one."""
    private = [*folders, Path.cwd(), Path(tempfile.gettempdir())]
    with contextlib.suppress(RuntimeError):  # a user without one
        private.append(Path.home())
    names = {str(form) for path in private for form in (path, path.absolute(), path.resolve())}
    return tuple(sorted((name for name in names if len(name) > 1 and os.path.isabs(name)), key=len, reverse=True))


def without_paths(value: Any, known: Iterable[str], folder: Path | None = None) -> Any:
    """`value` (of JSON) without the `known` folders in its texts: of a path below one, its name is left.

    folder: where to look from at texts that are an absolute path; None leaves those that are below no known folder.
    """
    if isinstance(value, dict):
        return {key: without_paths(below, known, folder) for key, below in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(below, known, folder) for below in value]
    if not isinstance(value, str):
        return value
    if folder is not None and _is_path(value):
        return _seen_from(folder, value)
    for name in known:
        # Up to the last part of a path, which may be a folder itself.
        value = re.sub(re.escape(name) + r"(?:[/\\]+(?:[^\s'\"<>:;,()/\\]+[/\\]+)*|(?![\w.-]))", "", value)
    return value


def _is_path(text: str) -> bool:
    return "\n" not in text and (PurePosixPath(text).is_absolute() or bool(PureWindowsPath(text).drive))


def _seen_from(folder: Path, text: str) -> str:
    name = PureWindowsPath(text).name or PurePosixPath(text).name
    if not os.path.isabs(text):  # of another system
        return name
    here, there = folder.resolve(), Path(text).resolve()
    shared = Path(os.path.commonpath([here, there])) if here.drive == there.drive else Path(here.anchor)
    climbs = len(here.parts) - len(shared.parts)
    # Seen from above the home, its own name would be in the way down.
    if climbs > _LEVELS or shared == Path(shared.anchor) or _is_above_home(shared):
        return name
    return Path(os.path.relpath(there, here)).as_posix()


def _is_above_home(path: Path) -> bool:
    try:
        return path in Path.home().resolve().parents
    except RuntimeError:
        return False
