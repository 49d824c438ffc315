"""COCO's box metrics of detections, by pycocotools or by faster-coco-eval."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from runtime.detections import Detections
from runtime.records import EVERY_CLASS, CocoDataset

METRICS = ("map", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


class EvaluationError(ValueError):
    """A detector and a dataset that cannot be judged together; the message says why."""


def coco_metrics(found: dict[int, Detections], dataset: CocoDataset) -> tuple[dict[str, float], dict[str, float]]:
    """COCO's metrics by name and the AP by class name, in points, over the images that `found` has.

    Crowd boxes are COCO's: a detection that is matched to no object and lies in one (by the share of its own area that
    is inside) counts neither as right nor as wrong. One that stands for every class is a crowd of each.
    """
    judge = coco_judge(found, dataset)
    with contextlib.redirect_stdout(io.StringIO()):
        judge.summarize()
    metrics = {name: _points(judge.stats[i]) for i, name in enumerate(METRICS)}
    metrics["ar100"] = _points(judge.stats[8])
    precision = judge.eval["precision"]  # [IoU, recall, category, area range, most detections]
    scores = judge.eval["scores"]
    metrics["threshold"] = _best_threshold(precision[0, :, :, 0, -1], scores[0, :, :, 0, -1], judge.params.recThrs)
    row_of = {category: row for row, category in enumerate(judge.params.catIds)}
    per_class = {}
    for name, category in zip(dataset.class_names, dataset.category_ids, strict=True):
        values = precision[:, :, row_of[category], 0, -1]
        values = values[values > -1]  # -1: the class has no object
        per_class[name] = float(values.mean()) * 100 if values.size else math.nan
    return metrics, per_class


def coco_judge(
    found: dict[int, Detections], dataset: CocoDataset, areas: Sequence[tuple[float, float]] | None = None
) -> Any:
    """A COCOeval that has accumulated over the images that `found` has.

    areas: ranges of square pixels, both ends included, instead of COCO's all, small, medium, large; with these
    `summarize`, which knows COCO's only, cannot be called.
    """
    coco_class, cocoeval_class = coco_engine()
    records = [record for record in dataset.records if record.id in found]
    truth = [
        {
            "image_id": record.id, "category_id": category, "bbox": _xywh(box),
            "area": float(area), "iscrowd": int(crowd),
        }
        for record in records
        for box, label, crowd, area in zip(record.boxes_xyxy, record.labels, record.crowd, record.area, strict=True)
        for category in (dataset.category_ids if label == EVERY_CLASS else (dataset.category_ids[label],))
    ]  # fmt: skip
    results: list[dict[str, Any]] = []
    for record in records:
        for result in found[record.id].to_coco(record.id, dataset.category_ids):
            results.append({**result, "area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0})
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints; its numbers are returned instead
        sides = []
        for annotations in (truth, results):
            side = coco_class()
            side.dataset = {
                "images": [{"id": record.id} for record in records],
                "categories": [{"id": i} for i in dataset.category_ids],
                # From 1: pycocotools takes a match with annotation 0 for no match.
                "annotations": [{**annotation, "id": i} for i, annotation in enumerate(annotations, start=1)],
            }
            side.createIndex()
            sides.append(side)
        judge = cocoeval_class(*sides, iouType="bbox")
        if areas is not None:
            judge.params.areaRng = [list(ends) for ends in areas]
            judge.params.areaRngLbl = [str(i) for i in range(len(areas))]
        judge.evaluate()
        judge.accumulate()
    return judge


def _best_threshold(precision: Any, scores: Any, recall: Any) -> float:
    """The score of 0.01..0.99 with the best F1, averaged over classes that have objects; 0.3 without any.

    precision [R, C] and scores [R, C] at the recalls [R] of COCO's curves; precision is -1 for classes without
    objects, and 0 at recalls that are never reached.
    """
    there = precision[0] > -1
    if not there.any():
        return 0.3
    f1 = 2 * precision * recall[:, None] / np.maximum(precision + recall[:, None], 1e-9)
    grid = np.arange(1, 100) / 100
    # At threshold t a class stands at the largest recall whose score is still t or more.
    reached = (scores[None] >= grid[:, None, None]) & (precision[None] > 0)  # [99, R, C]
    stands = reached.shape[1] - 1 - reached[:, ::-1].argmax(axis=1)  # [99, C]
    values = np.take_along_axis(f1, stands, axis=0) * reached.any(axis=1)
    mean = values[:, there].mean(axis=1)
    # The curve has points where something is found: between two of them the highest threshold invents least.
    return float(grid[len(grid) - 1 - mean[::-1].argmax()])


def coco_engine() -> tuple[Any, Any]:
    """The classes COCO and COCOeval: faster-coco-eval's where it is installed, else pycocotools'.

    Raises `EvaluationError` where neither is.
    """
    if importlib.util.find_spec("faster_coco_eval") is not None:
        from faster_coco_eval import COCO as FasterCOCO
        from faster_coco_eval import COCOeval_faster

        return FasterCOCO, COCOeval_faster
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise EvaluationError(f"evaluation needs pycocotools: pip install pycocotools ({error})") from error
    return COCO, COCOeval


def _xywh(box: Any) -> list[float]:
    x1, y1, x2, y2 = (float(v) for v in box)
    return [x1, y1, x2 - x1, y2 - y1]


def _points(value: Any) -> float:
    return math.nan if value < 0 else float(value) * 100
