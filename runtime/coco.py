"""Reading COCO object annotations: strict about the file, exact about each box that it leaves out."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from runtime.records import (
    ABSENT_CLASS,
    CLIPPED,
    MOST_PIXELS,
    NO_AREA,
    NO_BBOX,
    NO_FILE,
    NOT_FINITE,
    OTHER_CLASS,
    OUTSIDE,
    UNKNOWN_CATEGORY,
    UNKNOWN_IMAGE,
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
)

CocoError = DatasetError
"""The name that applications catch; what is wrong with a file of another format is a `DatasetError` just as well."""

_LARGEST_AREA = float(np.finfo(np.float32).max)  # as which it is kept

__all__ = [
    "CLIPPED", "NOT_FINITE", "NO_AREA", "NO_BBOX", "NO_FILE", "OTHER_CLASS", "OUTSIDE", "UNKNOWN_CATEGORY",
    "UNKNOWN_IMAGE", "CocoDataset", "CocoError", "ImageRecord", "Problem", "Problems", "read_coco",
]  # fmt: skip


def read_coco(
    annotations: str | PathLike[str],
    images_dir: str | PathLike[str],
    classes: Sequence[str] | None = None,
    check_files: bool = True,
    allow_absent: bool = False,
) -> CocoDataset:
    """Read the COCO JSON file `annotations`, whose `file_name`s are relative to `images_dir`.

    Labels follow the sorted category ids, or the order of `classes` where it is given. Boxes that cannot be
    used are skipped and listed in `problems`; images without objects are kept. `check_files` skips (and
    lists) images whose file is missing. `allow_absent` lists classes that the file does not have in `problems`
    instead of raising.

    Raises `CocoError` for a file that cannot be read or is not COCO object annotations: not JSON, without
    images, annotations or categories, with duplicate ids or names, or with a class that is not in it.
    """
    with _without_cycle_search():
        return _read(Path(annotations), Path(images_dir), classes, check_files, allow_absent)


def _read(
    path: Path, folder: Path, classes: Sequence[str] | None, check_files: bool, allow_absent: bool
) -> CocoDataset:
    content = _content_of(path)
    if not folder.is_dir():
        raise CocoError(f"{folder}: no such images folder (file names in {path} are relative to it)")
    problems: list[Problem] = []
    names, ids, known = _categories(content, path, classes, allow_absent, problems)
    label_of = {category: label for label, category in enumerate(ids)}
    images = _images(content, path)
    objects = _objects(content, path, images, label_of, known, problems)

    records, missing = [], 0
    for image_id, (file_name, height, width) in images.items():
        file = folder / file_name
        if check_files and not os.path.isfile(file):  # False, too, for a name that no file can have
            missing += 1
            problems.append(Problem(NO_FILE, image_id, detail=str(file)))
            continue
        records.append(make_record(image_id, file, height, width, objects.get(image_id, ())))
    if missing and not records:
        raise CocoError(
            f"{path}: none of its {missing} image files is in {folder} (the first: {file_name!r}); "
            "check that the images folder is the one that file_name is relative to"
        )
    return CocoDataset(path, folder, names, ids, tuple(records), Problems(tuple(problems)))


@contextmanager
def _without_cycle_search() -> Iterator[None]:
    """Within it, Python looks for no garbage in cycles: among millions of new objects, none of which is any, that
    takes as long as the reading."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _without_outlines(entry: dict[str, Any]) -> dict[str, Any]:
    """A JSON object as it is parsed, without its polygons: most of a file, and nothing that a box needs."""
    entry.pop("segmentation", None)
    return entry


def _content_of(path: Path) -> dict[str, Any]:
    content = read_annotation_json(path, _without_outlines)
    if not isinstance(content, dict):
        raise CocoError(f"{path}: expected a JSON object with images, annotations, categories; got a {_kind(content)}")
    for key in ("images", "annotations", "categories"):
        if key not in content:
            raise CocoError(
                f"{path}: missing key '{key}' (COCO object annotations have images, annotations, categories)"
            )
        if not isinstance(content[key], list) or not all(isinstance(entry, dict) for entry in content[key]):
            raise CocoError(f"{path}: {key}: expected a list of objects, got {_kind(content[key])}")
    if not content["images"]:
        raise CocoError(f"{path}: images: empty dataset, expected at least one image")
    if not content["categories"]:
        raise CocoError(f"{path}: categories: expected at least one category, got none")
    return content


def _categories(
    content: dict[str, Any], path: Path, classes: Sequence[str] | None, allow_absent: bool, problems: list[Problem]
) -> tuple[tuple[str, ...], tuple[int, ...], set[int]]:
    """Class names and category ids in label order, and all category ids of the file."""
    by_id: dict[int, str] = {}
    for i, category in enumerate(content["categories"]):
        category_id = _int(category, "id", f"{path}: categories[{i}]")
        name = category.get("name")
        if not isinstance(name, str) or not name:
            raise CocoError(f"{path}: categories[{i}].name: expected text, got {name!r}")
        if category_id in by_id:
            raise CocoError(f"{path}: categories: id {category_id} is there twice ({by_id[category_id]!r}, {name!r})")
        if name in by_id.values():
            raise CocoError(f"{path}: categories: the name {name!r} is there twice; class names must differ")
        by_id[category_id] = name
    if classes is None:
        ids = tuple(sorted(by_id))
        return tuple(by_id[i] for i in ids), ids, set(by_id)
    names, absent = choose_classes(list(by_id.values()), classes, f"{path}: categories", allow_absent)
    problems += [Problem(ABSENT_CLASS, None, detail=repr(name)) for name in absent]
    id_of = {name: i for i, name in by_id.items()}
    free = max(by_id) + 1
    id_of |= {name: free + i for i, name in enumerate(absent)}
    return names, tuple(id_of[name] for name in names), set(by_id)


def _images(content: dict[str, Any], path: Path) -> dict[int, tuple[str, int, int]]:
    """Image id to (file name, height, width), in the order of the file."""
    images: dict[int, tuple[str, int, int]] = {}
    for i, image in enumerate(content["images"]):
        image_id = _int(image, "id", f"{path}: images[{i}]")
        where = f"{path}: images[{i}] (id {image_id})"
        if image_id in images:
            raise CocoError(
                f"{where}: this image id is there twice ({images[image_id][0]!r}, {image.get('file_name')!r})"
            )
        file_name = image.get("file_name")
        if not isinstance(file_name, str) or not file_name:
            raise CocoError(f"{where}: file_name: expected text, got {file_name!r}")
        height, width = _int(image, "height", where), _int(image, "width", where)
        if min(height, width) < 1:
            raise CocoError(f"{where}: expected height and width of at least 1 pixel, got {height}x{width}")
        if max(height, width) > MOST_PIXELS:
            raise CocoError(f"{where}: expected height and width in pixels, got one of more than {MOST_PIXELS}")
        images[image_id] = (file_name, height, width)
    return images


def _objects(
    content: dict[str, Any],
    path: Path,
    images: dict[int, tuple[str, int, int]],
    label_of: dict[int, int],
    known: set[int],
    problems: list[Problem],
) -> dict[int, list[Row]]:
    """Image id to its usable (box_xyxy, label, crowd, area) rows; everything else goes to `problems`."""
    objects: dict[int, list[Row]] = {}
    seen: set[int] = set()
    for i, annotation in enumerate(content["annotations"]):
        annotation_id, image_id, category = (annotation.get(key) for key in ("id", "image_id", "category_id"))
        if annotation_id is not None:
            if not isinstance(annotation_id, int):
                raise CocoError(f"{path}: annotations[{i}].id: expected a whole number, got {annotation_id!r}")
            if annotation_id in seen:
                raise CocoError(f"{path}: annotations[{i}].id: the annotation id {annotation_id} is there twice")
            seen.add(annotation_id)
        if not isinstance(image_id, int) or image_id not in images:
            shown = image_id if isinstance(image_id, int) else None
            problems.append(Problem(UNKNOWN_IMAGE, shown, annotation_id, f"image_id {image_id!r}"))
            continue
        if not isinstance(category, int) or category not in label_of:
            reason = OTHER_CLASS if isinstance(category, int) and category in known else UNKNOWN_CATEGORY
            problems.append(Problem(reason, image_id, annotation_id, f"category_id {category!r}"))
            continue
        bbox = annotation.get("bbox")
        box, reason = _box(bbox, *images[image_id][1:])
        if reason:
            problems.append(Problem(reason, image_id, annotation_id, f"bbox {bbox!r}"))
        if box is None:
            continue
        area = annotation.get("area")
        if not is_number(area) or not 0 < as_float(area) <= _LARGEST_AREA:
            area = (box[2] - box[0]) * (box[3] - box[1])
        crowd = bool(annotation.get("iscrowd", 0))
        objects.setdefault(image_id, []).append(Row(box, label_of[category], crowd, float(area)))
    return objects


def _box(bbox: Any, height: int, width: int) -> tuple[tuple[float, float, float, float] | None, str]:
    """COCO's [x, y, w, h] as a clipped xyxy box, or None; and the reason where it is skipped or clipped."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(is_number(v) for v in bbox):
        return None, NO_BBOX
    x, y, w, h = map(as_float, bbox)
    if not math.isfinite(w) or not math.isfinite(h):
        return None, NOT_FINITE
    if (w <= 0 or h <= 0) and math.isfinite(x) and math.isfinite(y):
        return None, NO_AREA
    return clipped_box(x, y, x + w, y + h, height, width)


def _int(entry: dict[str, Any], key: str, where: str) -> int:
    value = entry.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise CocoError(f"{where}: {key}: expected a whole number, got {value!r}")
    return value


def _kind(value: Any) -> str:
    return {dict: "object", list: "list", str: "text", type(None): "null"}.get(type(value), type(value).__name__)
