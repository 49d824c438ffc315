"""Detections that some other program wrote, as COCO results: a JSON list of {image_id, category_id, bbox, score}."""

from __future__ import annotations

import math
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from runtime.datasets.annotations import CocoDataset, DatasetError, is_number, read_annotation_json
from runtime.detections import Detections


def read_coco_results(path: str | PathLike[str], dataset: CocoDataset) -> dict[int, Detections]:
    """The detections of a file of COCO results, by image id: for each image of `dataset`, also one without any.

    `bbox` is x, y, width, height in pixels of the picture. Boxes stay as they are, also where they leave it. Raises
    `DatasetError` that names the entry for one that is malformed, and for an image or a category that the annotations
    do not have.
    """
    path = Path(path)
    content = read_annotation_json(path)
    if not isinstance(content, list):
        kind = "something else"
        if isinstance(content, dict):
            kind = f"an object ({', '.join(list(content)[:5]) or 'empty'})"
            kind = "COCO annotations" if "images" in content else kind
        raise DatasetError.at(
            path, f"expected COCO results, a JSON list of {{image_id, category_id, bbox, score}}; this is {kind}"
        )
    label_of = {category: label for label, category in enumerate(dataset.category_ids)}
    rows: dict[int, list[tuple[float, list[float], int]]] = {record.id: [] for record in dataset.records}
    for i, entry in enumerate(content):
        where = f"{path}: entry {i}"
        if not isinstance(entry, dict):
            raise DatasetError(
                f"{where}: expected an object with image_id, category_id, bbox, score; got {entry!r:.60}"
            )
        image, category = _id(entry, "image_id", where), _id(entry, "category_id", where)
        if image not in rows:
            raise DatasetError(f"{where}: image_id: {dataset.annotations} has no image {image}")
        if category not in label_of:
            known = _categories(dataset)
            raise DatasetError(
                f"{where}: category_id: {dataset.annotations} has no category {category}; it has {known}"
            )
        rows[image].append((_score(entry, where), _box_xyxy(entry, where), label_of[category]))
    return {image: _detections(of_image, dataset.class_names) for image, of_image in rows.items()}


def _detections(rows: list[tuple[float, list[float], int]], names: tuple[str, ...]) -> Detections:
    rows = sorted(rows, key=lambda row: -row[0])  # of equal scores the earlier stays first
    scores, boxes, labels = zip(*rows, strict=True) if rows else ((), (), ())
    boxes_xyxy = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(boxes_xyxy, np.array(scores, np.float32), np.array(labels, np.int32), names)


def _id(entry: dict[str, Any], key: str, where: str) -> int:
    value = entry.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        said = f"got {value!r:.60}" if key in entry else f"it has only {', '.join(map(str, entry)) or 'nothing'}"
        raise DatasetError(f"{where}: {key}: expected a whole number, an id of the annotations; {said}")
    return value


def _score(entry: dict[str, Any], where: str) -> float:
    score: Any = entry.get("score")
    if not is_number(score) or not 0 <= score <= 1:
        raise DatasetError(f"{where}: score: expected a number from 0 to 1, got {score!r:.60}")
    return float(score)


def _box_xyxy(entry: dict[str, Any], where: str) -> list[float]:
    bbox = entry.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(is_number(v) and abs(v) < 1e9 for v in bbox):
        raise DatasetError(f"{where}: bbox: expected four numbers x, y, width, height in pixels, got {bbox!r:.60}")
    x, y, w, h = map(float, bbox)
    if w < 0 or h < 0 or math.isnan(x + y + w + h):
        raise DatasetError(
            f"{where}: bbox: expected x, y, width, height with no side below 0, got {bbox}; x1, y1, x2, y2 must be "
            "converted"
        )
    return [x, y, x + w, y + h]


def _categories(dataset: CocoDataset) -> str:
    pairs = [f"{i} ({name})" for i, name in zip(dataset.category_ids, dataset.class_names, strict=True)]
    return ", ".join(pairs[:10]) + (f" and {len(pairs) - 10} more" if len(pairs) > 10 else "")
