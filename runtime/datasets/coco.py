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

from runtime.datasets.annotations import (
    BAD_FLAG,
    BAD_ROTATION,
    CLIPPED,
    NO_AREA,
    NO_BBOX,
    NO_FILE,
    NOT_FINITE,
    OTHER_CLASS,
    OUTSIDE,
    TURNED,
    UNKNOWN_CATEGORY,
    UNKNOWN_IMAGE,
    CocoDataset,
    DatasetError,
    Problem,
    Problems,
    Row,
    as_float,
    choose_classes,
    clipped_box,
    flag_of,
    is_number,
    make_record,
    read_annotation_json,
    rotation_of,
    turned_bounds,
)
from runtime.datasets.coco_fields import CocoImage, Id, id_of, numbered, read_images, required_id, roots_of_a_name
from runtime.datasets.foreign import foreign_json

_LARGEST_AREA = float(np.finfo(np.float32).max)  # areas are kept as float32

__all__ = ["CLIPPED", "NO_FILE", "OUTSIDE", "CocoDataset", "read_coco"]  # with reasons that come from clipped_box


@contextmanager
def _without_cycle_search() -> Iterator[None]:
    """Switch off Python's search for garbage in cycles: none is among the millions of new objects, and the search would
    take as long as the reading."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_without_cycle_search()
def read_coco(
    annotations: str | PathLike[str],
    images_dir: str | PathLike[str],
    classes: Sequence[str] | None = None,
    check_files: bool = True,
    allow_absent: bool = False,
) -> CocoDataset:
    """Read the COCO JSON file `annotations`, whose `file_name`s are relative to `images_dir`.

    Labels follow the sorted category ids (their order in the file where an id is text), or the order of `classes`
    where it is given. Where an image's id is text, ids count from 1. A size that the file does not have is read from
    the picture. Boxes that cannot be used are skipped and listed in `problems`; images without objects are kept.
    `check_files` skips (and lists) images whose file is missing. `allow_absent` lists classes that the file does not
    have in `problems` instead of raising.

    Raises `DatasetError` for a file that cannot be read or is not COCO object annotations: not JSON, without
    images, annotations or categories, with duplicate ids or names, or with a class that is not in it.
    """
    path, folder = Path(annotations), Path(images_dir)
    content = _content_of(path)
    if not os.path.isdir(folder):
        raise DatasetError.at(folder, f"no such images folder (file names in {path} are relative to it)")
    problems: list[Problem] = []
    names, ids, known = _categories(content, path, classes, allow_absent, problems)
    label_of = {known[category]: label for label, category in enumerate(ids) if category in known}
    images, first_missing = read_images(content["images"], path, folder, check_files, problems)
    objects = _objects(content, path, images, label_of, set(known.values()), problems)
    records = [
        make_record(image.number, folder / image.file_name, image.height, image.width, objects.get(key, ()))
        for key, image in images.items()
        if image.height
    ]
    if not records and first_missing is None:
        raise DatasetError.at(path, f"none of its {len(images)} images can be used: {Problems(tuple(problems)).why()}")
    if not records:
        raise DatasetError.at(
            path,
            f"none of its {len(images)} image files is in {folder} (the first: {first_missing!r}); "
            "check that the images folder is the one that file_name is relative to",
        )
    return CocoDataset(path, folder, names, ids, tuple(records), Problems(tuple(problems)))


def _without_outlines(entry: dict[str, Any]) -> dict[str, Any]:
    """A JSON object as it is parsed, without its polygons: they are most of a file, and boxes do not need them."""
    entry.pop("segmentation", None)
    return entry


def _content_of(path: Path) -> dict[str, Any]:
    content = read_annotation_json(path, _without_outlines)
    if foreign := "" if isinstance(content, dict) and "images" in content else foreign_json(content):
        raise DatasetError.at(path, foreign)
    if not isinstance(content, dict):
        raise DatasetError.at(
            path, f"expected a JSON object with images, annotations, categories; got a {_kind(content)}"
        )
    for key in ("images", "annotations", "categories"):
        if key not in content:
            raise DatasetError(
                f"{path}: missing key '{key}' (COCO object annotations have images, annotations, categories)",
                key=key,
                path=path,
            )
        if not isinstance(content[key], list) or not all(isinstance(entry, dict) for entry in content[key]):
            raise DatasetError.at(path, f"expected a list of objects, got {_kind(content[key])}", key=key)
    if not content["images"]:
        raise DatasetError.at(path, "empty dataset, expected at least one image", key="images")
    if not content["categories"]:
        raise DatasetError.at(path, "expected at least one category, got none", key="categories")
    return content


def _categories(
    content: dict[str, Any], path: Path, classes: Sequence[str] | None, allow_absent: bool, problems: list[Problem]
) -> tuple[tuple[str, ...], tuple[int, ...], dict[int, Id]]:
    """Class names and category numbers in label order, and the id in the file of each category number."""
    used = {id_of(annotation.get("category_id")) for annotation in content["annotations"]}
    roots = roots_of_a_name(content["categories"], used)
    by_id: dict[Id, str] = {}
    taken: dict[str, Id] = {}
    for i, category in enumerate(content["categories"]):
        category_id = required_id(category, f"{path}: categories[{i}]")
        name = category.get("name")
        if not isinstance(name, str) or not name:
            raise DatasetError.at(path, f"categories[{i}].name: expected text, got {name!r}")
        if category_id in by_id:
            raise DatasetError.at(
                path, f"id {category_id} is there twice ({by_id[category_id]!r}, {name!r})", key="categories"
            )
        if i in roots:
            continue
        if name in taken:
            raise DatasetError.at(path, f"the name {name!r} is there twice; class names must differ", key="categories")
        by_id[category_id] = name
        taken[name] = category_id
    number_of = numbered(list(by_id))
    known = {number: category for category, number in number_of.items()}
    if classes is None:
        ids = tuple(sorted(known))
        return tuple(by_id[known[i]] for i in ids), ids, known
    names, absences = choose_classes(list(by_id.values()), classes, f"{path}: categories", allow_absent)
    problems += absences
    ids_of = {name: number_of[category] for category, name in by_id.items()}
    absent = [name for name in names if name not in ids_of]
    ids_of |= {name: number for number, name in enumerate(absent, start=max(known) + 1)}
    return names, tuple(ids_of[name] for name in names), known


def _objects(
    content: dict[str, Any],
    path: Path,
    images: dict[Id, CocoImage],
    label_of: dict[Id, int],
    known: set[Id],
    problems: list[Problem],
) -> dict[Id, list[Row]]:
    """Image id to its usable (box_xyxy, label, crowd, area) rows; everything else goes to `problems`."""
    objects: dict[Id, list[Row]] = {}
    seen: set[Id] = set()
    for i, annotation in enumerate(content["annotations"]):
        annotation_id, image_id, category = (id_of(annotation.get(key)) for key in ("id", "image_id", "category_id"))
        if annotation.get("id") is not None:
            if annotation_id is None:
                raise DatasetError.at(path, f"annotations[{i}].id: expected a whole number, got {annotation['id']!r}")
            if annotation_id in seen:
                raise DatasetError.at(path, f"annotations[{i}].id: the annotation id {annotation_id} is there twice")
            seen.add(annotation_id)
        number = annotation_id if isinstance(annotation_id, int) else None
        image = None if image_id is None else images.get(image_id)
        if image is None or image_id is None:
            shown = image_id if isinstance(image_id, int) else None
            problems.append(Problem(UNKNOWN_IMAGE, shown, number, f"image_id {annotation.get('image_id')!r}"))
            continue
        if category is None or category not in label_of:
            reason = OTHER_CLASS if category in known else UNKNOWN_CATEGORY
            detail = f"category_id {annotation.get('category_id')!r}"
            problems.append(Problem(reason, image.number, number, detail))
            continue
        if not image.height:
            continue  # read_images has reported its picture
        bbox, attributes = annotation.get("bbox"), annotation.get("attributes")
        degrees = rotation_of(attributes.get("rotation")) if isinstance(attributes, dict) else 0.0
        box, reason = _box(bbox, image.height, image.width, degrees or 0.0)
        if reason:
            problems.append(Problem(reason, image.number, number, f"bbox {bbox!r}"))
        if box is None:
            continue
        if degrees:
            problems.append(Problem(TURNED, image.number, number, f"bbox {bbox!r}, rotation {degrees:g}"))
        elif degrees is None:
            problems.append(Problem(BAD_ROTATION, image.number, number, f"rotation {attributes['rotation']!r:.60}"))
        area = as_float(annotation["area"]) if is_number(annotation.get("area")) else 0.0
        area_in_file = area if 0 < area <= _LARGEST_AREA else None
        crowd = flag_of(annotation.get("iscrowd", 0))
        if crowd is None:
            problems.append(Problem(BAD_FLAG, image.number, number, f"iscrowd {annotation['iscrowd']!r:.60}"))
        objects.setdefault(image_id, []).append(Row(box, label_of[category], bool(crowd), area_in_file))
    return objects


def _box(
    bbox: Any, height: int, width: int, degrees: float = 0.0
) -> tuple[tuple[float, float, float, float] | None, str]:
    """COCO's [x, y, w, h], turned about its middle, as a clipped xyxy box, or None if it is skipped.

    And the reason where it is skipped or clipped.
    """
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(is_number(v) for v in bbox):
        return None, NO_BBOX
    x, y, w, h = map(as_float, bbox)
    if not all(map(math.isfinite, (x, y, w, h))):
        return None, NOT_FINITE
    if w <= 0 or h <= 0:
        return None, NO_AREA
    edges = (x, y, x + w, y + h)
    return clipped_box(*(turned_bounds(edges, degrees) if degrees and math.isfinite(x + y) else edges), height, width)


def _kind(value: Any) -> str:
    return {dict: "object", list: "list", str: "text", type(None): "null"}.get(type(value), type(value).__name__)
