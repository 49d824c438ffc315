"""A text file that lists pictures, one a line, as YOLO and Darknet use it, also where another machine wrote it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from runtime.datasets.annotations import read_lines
from runtime.files.write import absolute_path
from runtime.images.image import IMAGE_SUFFIXES
from runtime.images.picture_files import pictures_in


class Listed(NamedTuple):
    """The pictures of a list."""

    pictures: list[Path]
    notes: tuple[str, ...]
    """How pictures were found whose paths do not exist."""


def listed_pictures(path: Path, root: Path) -> Listed:
    """The pictures that the file `path` names, relative to itself or to `root`.

    A line may have a path that does not exist here: another machine's, or one with Darknet's prefix data/. It is
    matched by its last parts below the folder of the list, else by a name that only one picture there has. Raises
    `DatasetError`.
    """
    place = absolute_path(path).parent
    roots = (path.parent, root)
    pictures, matched = [], 0

    @cache
    def by_name() -> dict[str, list[Path]]:
        names = defaultdict(list)
        for picture in pictures_in(place):
            names[picture.name].append(picture)
        return names

    for line in list_lines(path):
        picture = _file_in(roots, list(dict.fromkeys((line, line.replace("\\", "/")))))
        if picture is None:
            picture = _file_in(roots, endings(line)[1:] or endings(line))
            same_name = by_name().get(_posix(line).name, []) if picture is None else []
            picture = same_name[0] if len(same_name) == 1 else picture
            matched += picture is not None
        pictures.append(picture or path.parent / line)
    note = f"{matched} paths of {path.name} are another machine's; their pictures were found by name below {place}"
    return Listed(pictures, (note,) if matched else ())


def list_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty, stripped. Raises `DatasetError`."""
    return read_lines(path, "cannot read this list of pictures")


def names_pictures(lines: Sequence[str]) -> bool:
    """Whether lines look like paths of pictures, and not like names without a suffix."""
    return any(_posix(line).suffix.lower() in IMAGE_SUFFIXES for line in lines[:20])


def endings(text: str) -> list[Path]:
    """The path `text` without its root, and without its first 1, 2, ... folders; the name alone is the last."""
    parts = [part for part in _posix(text).parts if part not in ("/", ".", "..")]
    return [Path(*parts[start:]) for start in range(len(parts))]


def _posix(line: str) -> PurePosixPath:
    return PurePosixPath(line.replace("\\", "/"))


def _file_in(roots: Sequence[Path], names: Sequence[str | Path]) -> Path | None:
    return next((root / name for name in names for root in roots if os.path.isfile(root / name)), None)
