"""YOLO: one text file for each picture, a line `class x_center y_center width height` for each object.

The four numbers are fractions of the upright picture's sides. A line with a polygon (class x1 y1 x2 y2 x3 y3 ...)
stands for the bounding box of the polygon. In a line with a pose (`kpt_shape` in data.yaml), the first four numbers are
the box. A picture without a label file, or with an empty one, has no objects. The format has no ignored regions.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from runtime.datasets.annotations import (
    KEY_POINTS,
    NO_BBOX,
    NO_CLASS,
    NO_FILE,
    NO_PICTURE,
    NOT_FINITE,
    OTHER_CLASS,
    BrokenEntry,
    CocoDataset,
    DatasetError,
    ImageRecord,
    Problem,
    Problems,
    Row,
    choose_classes,
    clipped_box,
    decoded_text,
    left_out,
    make_record,
    read_entries,
)
from runtime.datasets.yolo_places import YoloPlaces, lost_objects_text, yolo_places
from runtime.images.image_header import image_size

_FAR = 1.0
"""Distance of a polygon's points from the middle of the picture, as a fraction of its sides: half a picture outside."""


def read_yolo(
    annotations: Path, images: Path | None, classes: Sequence[str] | None, split: str, allow_absent: bool
) -> CocoDataset:
    """Read a data.yaml or obj.data (its `split`), a folder of label files, or a text file that lists pictures.

    Image ids count from 1 in the order of paths. Every picture is opened for its size. Arguments and errors are those
    of `read_dataset`.
    """
    places = yolo_places(annotations, images, classes, split)
    names, absences = choose_classes(places.known, classes, str(annotations), allow_absent)
    problems: list[Problem] = []
    label_of = {number: names.index(name) for number, name in enumerate(places.known) if name in names}
    read_files: list[Path] = []

    def read(files: tuple[Path, Path], image_id: int) -> ImageRecord:
        picture, label_file = files
        height, width = image_size(picture)
        rows: list[Row] = []
        for number, line in enumerate(_lines(label_file, read_files), start=1):
            if not line.strip():
                continue
            row, reason = _row(line, height, width, len(places.known), label_of, places.key_points)
            if reason:
                where = f"{label_file}, line {number}: {line:.80}"
                where += _list_length(places) if reason == NO_CLASS else ""
                problems.append(Problem(reason, image_id, number, where))
            if row is not None:
                rows.append(row)
        return make_record(image_id, picture, height, width, rows)

    records = read_entries(places.pairs, read, problems, check_files=False)
    if not records:
        raise DatasetError(
            f"{annotations}: none of its {len(places.pairs)} images can be used; the first: {problems[0].detail}"
            + _another_machine(problems)
        )
    problems += [Problem(NO_PICTURE, None, detail=lost_objects_text(path)) for path in places.unpaired]
    problems += left_out(places.left_out)
    all_problems = Problems((*absences, *problems), places.notes)
    ids = tuple(range(1, len(names) + 1))
    files = (*places.named_by, *read_files) or (annotations,)
    return CocoDataset(annotations, places.folder, names, ids, tuple(records), all_problems, files)


def _lines(label_file: Path, read_files: list[Path]) -> list[str]:
    """The lines of a label file, which joins `read_files`; none where it does not exist."""
    if not os.path.isfile(label_file):
        return []
    read_files.append(label_file)
    try:
        return decoded_text(label_file.read_bytes()).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BrokenEntry.at(label_file, str(error)) from None


def _list_length(places: YoloPlaces) -> str:
    by, count = places.named_by[0] if places.named_by else "the class list", len(places.known)
    return f" ({by} names {count} class{'' if count == 1 else 'es'})"


def _another_machine(problems: Sequence[Problem]) -> str:
    if any(problem.reason != NO_FILE for problem in problems):
        return ""
    return " (are the paths another machine's? Put the list above the folder of the pictures: they are found by name)"


def _row(
    line: str, height: int, width: int, classes: int, label_of: Mapping[int, int], key_points: int = 0
) -> tuple[Row | None, str]:
    """The object of a line, or None; and the reason where it is skipped or clipped."""
    try:
        first, *values = (float(word) for word in line.split())
    except ValueError:
        return None, NO_BBOX
    if len(values) == 4 or (key_points and len(values) == 4 + key_points):
        x, y, w, h = values[:4]
        shares = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        if w <= 0 or h <= 0:  # a box without an area, which clipped_box refuses
            shares = (x, y, x, y)
    elif len(values) >= 6 and len(values) % 2 == 0 and not key_points:
        if not all(map(math.isfinite, values)):  # min and max ignore NaN
            return None, NOT_FINITE
        if any(abs(value - 0.5) > _FAR for value in values):  # visibilities 2, or pixels
            return None, KEY_POINTS
        shares = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    else:
        return None, NO_BBOX
    if not math.isfinite(first) or first != int(first) or not 0 <= first < classes:
        return None, NO_CLASS
    if int(first) not in label_of:
        return None, OTHER_CLASS
    # Labels usually have six decimals.
    tolerance = max(1e-3, 2e-6 * max(height, width))
    x1, y1, x2, y2 = shares
    box, reason = clipped_box(x1 * width, y1 * height, x2 * width, y2 * height, height, width, tolerance)
    return (None if box is None else Row(box, label_of[int(first)])), reason
