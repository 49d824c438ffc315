"""A text file that lists pictures, one a line, as YOLO and Darknet train from: found here, whoever wrote the list."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from runtime.datasets.annotations import DatasetError, decoded_text
from runtime.files.write import absolute_path
from runtime.images.image import IMAGE_SUFFIXES
from runtime.images.picture_files import pictures_in


class Listed(NamedTuple):
    """The pictures of a list."""

    pictures: list[Path]
    notes: tuple[str, ...]
    """How they were found, where that was not by their paths."""


def listed_pictures(path: Path, root: Path) -> Listed:
    """The pictures that the file `path` names, relative to itself or to `root`.

    A line whose path is nowhere (another machine's, or with Darknet's prefix data/) is matched by its last parts below
    the folder of the list, else by a name that one picture there has. Raises `DatasetError`.
    """
    lines = list_lines(path)
    place = absolute_path(path).parent
    found: list[Path] = []
    by_name: dict[str, list[Path]] | None = None
    matched = 0
    for line in lines:
        picture = _at(line, (path.parent, root))
        if picture is None and (picture := _by_last_parts(line, (path.parent, root))) is None:
            if by_name is None:
                by_name = {}
                for below in pictures_in(place):
                    by_name.setdefault(below.name, []).append(below)
            same = by_name.get(_posix(line).name, [])
            picture = same[0] if len(same) == 1 else None
        if picture is None:
            picture = path.parent / line
        elif _at(line, (path.parent, root)) is None:
            matched += 1
        found.append(picture)
    note = f"{matched} paths of {path.name} are another machine's; their pictures were found by name below {place}"
    return Listed(found, (note,) if matched else ())


def list_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty, stripped. Raises `DatasetError`."""
    try:
        text = decoded_text(path.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError.at(path, f"cannot read this list of pictures: {error}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def names_pictures(lines: Sequence[str]) -> bool:
    """Whether lines look like paths of pictures, and not like names without a suffix."""
    return any(_posix(line).suffix.lower() in IMAGE_SUFFIXES for line in lines[:20])


def _posix(line: str) -> PurePosixPath:
    return PurePosixPath(line.replace("\\", "/"))


def _at(line: str, roots: Sequence[Path]) -> Path | None:
    texts = [line] if "\\" not in line else [line, line.replace("\\", "/")]
    return next((root / text for text in texts for root in roots if _is_file(root / text)), None)


def _by_last_parts(line: str, roots: Sequence[Path]) -> Path | None:
    parts = [part for part in _posix(line).parts if part not in ("/", ".", "..")]
    if not parts:
        return None
    ends = (Path(*parts[start:]) for start in range(1 if len(parts) > 1 else 0, len(parts)))
    return next((root / end for end in ends for root in roots if _is_file(root / end)), None)


def _is_file(path: Path) -> bool:
    try:
        return os.path.isfile(path)
    except (OSError, ValueError):  # a line that no file can be called
        return False
