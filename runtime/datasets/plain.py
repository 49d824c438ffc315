"""A plain JSON list, mmdetection's custom format: an entry for each picture, boxes as xyxy pixels.

    [{"filename": "a.jpg", "width": 640, "height": 480,
      "ann": {"bboxes": [[x1, y1, x2, y2]], "labels": [0], "bboxes_ignore": [[x1, y1, x2, y2]]}}]

Labels are numbers from 0, or class names. Names for numbers come from `<file>.classes.txt` or `classes.txt` beside the
list (one a line), else from the classes that are asked for. `bboxes_ignore` are regions that training and evaluation
ignore: for every class, or for the classes in `labels_ignore`. A table with a row for each object
(`runtime.datasets.table`) is read as such a list.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from runtime.datasets.annotations import (
    EVERY_CLASS,
    MOST_PIXELS,
    NO_BBOX,
    NO_CLASS,
    NO_FILE,
    OTHER_CLASS,
    BrokenEntry,
    CocoDataset,
    DatasetError,
    ImageRecord,
    Problem,
    Problems,
    Row,
    as_float,
    choose_classes,
    clipped_box,
    is_number,
    make_record,
    read_annotation_json,
    read_class_names,
    read_entries,
)
from runtime.datasets.foreign import foreign_json
from runtime.datasets.table import table_entries
from runtime.images.image_header import image_size


def read_list(
    annotations: Path, images: Path, classes: Sequence[str] | None, check_files: bool, allow_absent: bool
) -> CocoDataset:
    """Read a JSON list. Image ids count from 1 in its order. Arguments and errors are those of `read_dataset`."""
    content = _content_of(annotations)
    beside = (annotations.with_suffix(".classes.txt"), annotations.parent / "classes.txt")
    names_file = next((path for path in beside if os.path.isfile(path)), None)
    known = _known_classes(annotations, content, names_file, classes)
    names, problems = choose_classes(known, classes, str(annotations), allow_absent)
    absences = len(problems)
    label_of: dict[int | str, int | None] = {}  # by number and by name; None for classes that were not asked for
    for number, name in enumerate(known):
        label_of[number] = label_of[name] = names.index(name) if name in names else None

    def read(entry: Any, image_id: int) -> ImageRecord:
        return _record(entry, image_id, f"{annotations}: [{image_id - 1}]", images, label_of, problems)

    records = read_entries(content, read, problems, check_files)
    if not records:
        missing = [problem.detail for problem in problems[absences:] if problem.reason == NO_FILE]
        why = f"no such file {missing[0]}" if missing else f"the first: {problems[absences].detail}"
        raise DatasetError.at(annotations, f"none of its {len(content)} images can be used ({why})")
    files = (annotations, names_file) if names_file is not None else ()
    ids = tuple(range(1, len(names) + 1))
    return CocoDataset(annotations, images, names, ids, tuple(records), Problems(tuple(problems)), files)


def _content_of(path: Path) -> list[Any]:
    content = table_entries(path) if path.suffix.lower() == ".csv" else read_annotation_json(path)
    if not isinstance(content, list) or not content:
        raise DatasetError.at(path, "expected a JSON list of {filename, width, height, ann}, at least one")
    if foreign := foreign_json(content):
        raise DatasetError.at(path, foreign)
    if isinstance(content[0], dict) and "image_id" in content[0]:
        raise DatasetError.at(
            path,
            "a list of detections (COCO results) or of bare annotations, not a data set: expected "
            "objects with filename and ann",
        )
    return content


def _known_classes(
    path: Path, content: list[Any], names_file: Path | None, classes: Sequence[str] | None
) -> Sequence[str]:
    """Names of labels 0, 1, ...: from the file of names, from labels that are text, or `classes`."""
    if names_file is not None:
        return read_class_names(names_file)
    anns = [entry["ann"] for entry in content if isinstance(entry, dict) and isinstance(entry.get("ann"), dict)]
    labels = [ann[key] for ann in anns for key in ("labels", "labels_ignore") if isinstance(ann.get(key), list)]
    if texts := sorted({label for label in chain.from_iterable(labels) if isinstance(label, str)}):
        return texts
    if classes is not None:
        return classes
    raise DatasetError.at(
        path,
        f"its labels are numbers; write their class names, one a line, into {path.stem}.classes.txt or "
        "classes.txt beside it, or give the classes",
    )


def _record(
    entry: Any, image_id: int, where: str, images: Path, label_of: dict[int | str, int | None], problems: list[Problem]
) -> ImageRecord:
    if not isinstance(entry, dict):
        raise BrokenEntry(f"{where}: expected an object with filename and ann, got {entry!r:.60}")
    file_name = entry.get("filename")
    if not isinstance(file_name, str) or not file_name:
        raise BrokenEntry(f"{where}.filename: expected text, got {file_name!r:.60}")
    path = images / file_name
    height, width = _side(entry, "height", where), _side(entry, "width", where)
    if height is None or width is None:
        height, width = image_size(path)
    ann = entry.get("ann", {})
    if not isinstance(ann, dict):
        raise BrokenEntry(f"{where}.ann: expected an object with bboxes and labels, got {ann!r:.60}")
    rows: list[Row] = []
    for boxes_key, labels_key, ignored in (("bboxes", "labels", False), ("bboxes_ignore", "labels_ignore", True)):
        boxes, labels = ann.get(boxes_key) or [], ann.get(labels_key)
        if not isinstance(boxes, list):
            raise BrokenEntry(f"{where}.ann.{boxes_key}: expected a list of [x1, y1, x2, y2], got {boxes!r:.60}")
        if labels is None and ignored:
            labels = [EVERY_CLASS] * len(boxes)
        if not isinstance(labels or [], list) or len(labels or []) != len(boxes):
            raise BrokenEntry(
                f"{where}.ann.{labels_key}: expected {len(boxes)} labels, one for each box, got {labels!r:.60}"
            )
        for i, (box, label) in enumerate(zip(boxes, labels or [], strict=True)):
            detail = f"[{image_id - 1}].ann.{boxes_key}[{i}]: {box!r:.60}, label {label!r:.60}"
            row, reason = _row(box, label, ignored, height, width, label_of)
            if reason:
                problems.append(Problem(reason, image_id, i, detail))
            if row is not None:
                rows.append(row)
    return make_record(image_id, path, height, width, rows)


def _side(entry: dict[str, Any], key: str, where: str) -> int | None:
    side = entry.get(key)
    if side is not None and (type(side) is not int or side < 1):
        raise BrokenEntry(f"{where}.{key}: expected a whole number of at least 1, got {side!r:.60}")
    if side is not None and side > MOST_PIXELS:
        raise BrokenEntry(f"{where}.{key}: expected pixels, got more than {MOST_PIXELS}")
    return side


def _row(
    box: Any, label: Any, ignored: bool, height: int, width: int, label_of: dict[int | str, int | None]
) -> tuple[Row | None, str]:
    """The object, or None; and the reason where it is skipped or clipped."""
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(v) for v in box):
        return None, NO_BBOX
    index: int | None
    if ignored and label == EVERY_CLASS:
        index = EVERY_CLASS
    elif type(label) not in (int, str) or label not in label_of:
        return None, NO_CLASS
    elif (index := label_of[label]) is None:
        return None, OTHER_CLASS
    x1, y1, x2, y2 = map(as_float, box)
    clipped, reason = clipped_box(x1, y1, x2, y2, height, width)
    return (None if clipped is None else Row(clipped, index, ignored)), reason
