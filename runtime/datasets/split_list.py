"""A list of the pictures of a split: a text file that divides a data set which has no split of its own.

A line is the path of a picture, as seen from the data set's folder of pictures, with forward slashes. So the list stays
right where the data set moves, and pictures that are added later change no side.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from runtime.datasets.annotations import NOT_LISTED, CocoDataset, DatasetError, Problem, Problems, read_lines


def listed_part(dataset: CocoDataset, path: Path) -> CocoDataset:
    """The records of `dataset` whose pictures the list `path` names; `problems` has the lines without a record.

    Raises `DatasetError` for a list that cannot be read, or that names none of the pictures.
    """
    lines = list_of_pictures(path)
    names = {_full(dataset, line) for line in lines}
    records = tuple(record for record in dataset.records if os.path.abspath(record.path) in names)
    if not records:
        advice = f"a line is a path below {dataset.images_dir}"
        reason = f"none of its {len(lines)} pictures is in {dataset.annotations}; {advice}"
        raise DatasetError.at(path, reason, key="pictures")
    known = {os.path.abspath(record.path) for record in records}
    left = {os.path.abspath(item.detail) for item in dataset.problems.items if item.image_id is not None}
    absent = [line for line in lines if _full(dataset, line) not in known | left]
    problems = [Problem(NOT_LISTED, None, detail=str(dataset.images_dir / line)) for line in absent]
    note = f"{len(records)} of {len(dataset)} pictures, those of {path.name}"
    return replace(
        dataset,
        records=records,
        problems=Problems((*dataset.problems.items, *problems), (*dataset.problems.notes, note)),
        files=(*(dataset.files or (dataset.annotations,)), path),
    )


def unlisted_pictures(dataset: CocoDataset, paths: Sequence[Path]) -> list[Path]:
    """The pictures of `dataset` that none of the lists `paths` names. Raises `DatasetError`."""
    names = {_full(dataset, line) for path in paths for line in list_of_pictures(path)}
    pictures = dict.fromkeys(record.path for record in dataset.records)
    return [path for path in pictures if os.path.abspath(path) not in names]


def list_of_pictures(path: Path) -> list[str]:
    """The lines of a list, each once. Raises `DatasetError`."""
    lines = list(dict.fromkeys(read_lines(path, "cannot read this list of pictures")))
    if not lines:
        raise DatasetError.at(path, "expected the path of a picture in each line; it has none", key="pictures")
    return lines


def list_text(dataset: CocoDataset, paths: Sequence[Path]) -> str:
    """The list of these pictures of `dataset`. Raises `DatasetError` for a name that a line cannot hold."""
    lines = []
    for path in dict.fromkeys(paths):
        try:
            line = Path(os.path.relpath(path, dataset.images_dir)).as_posix()
        except ValueError:  # another drive
            line = Path(os.path.abspath(path)).as_posix()
        if line.strip().splitlines() != [line] or not _is_utf_8(line):
            raise DatasetError.at(path, "a list of pictures cannot hold this name: rename the file")
        lines.append(line)
    return "".join(f"{line}\n" for line in sorted(lines))


def _is_utf_8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of a file name that are no UTF-8
        return False
    return True


def _full(dataset: CocoDataset, line: str) -> str:
    return os.path.abspath(dataset.images_dir / line)
