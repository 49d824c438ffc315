"""COCO's box metrics of detections, by pycocotools or by faster-coco-eval."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from isodet.errors import IsodetError
from runtime.datasets.annotations import EVERY_CLASS, CocoDataset
from runtime.detections import Detections

METRICS = ("map", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


class EvaluationError(IsodetError, ValueError):
    """A detector and a dataset that cannot be judged together; the message says why."""


MOST = 100
"""Detections of a class in one picture that COCO's metrics look at, the best first."""


def coco_metrics(
    detections: dict[int, Detections], dataset: CocoDataset, max_dets: Sequence[int] = (MOST,)
) -> tuple[dict[str, Any], dict[str, float]]:
    """COCO's metrics by name and the AP by class name, in points, over the images that `detections` has.

    Crowd boxes follow COCO's rule: a detection that matches no object and lies in a crowd box (by the share of its own
    area that is inside) counts neither as right nor as wrong. A crowd box of `EVERY_CLASS` is one of each class.

    max_dets: limits on the detections of a class in an image, rising. `map_at` has the mAP at each, and all other
    metrics are those at the last; but the threshold is read from all detections. `cut` counts the images with more
    detections of a class than the last limit, and `crowded` those with more objects of one.
    """
    most = max((_of_one_class(result.labels) for result in detections.values()), default=0)
    evaluator = coco_evaluator(detections, dataset, max_dets=(*max_dets, max(max_dets[-1], most)))
    precision = evaluator.eval["precision"]  # [IoU, recall, category, area range, most detections]
    last, unlimited, every = len(max_dets) - 1, -1, slice(None)
    at_50, at_75 = (int(np.argmin(np.abs(evaluator.params.iouThrs - iou))) for iou in (0.5, 0.75))
    parts = ((every, 0), (at_50, 0), (at_75, 0), (every, 1), (every, 2), (every, 3))  # IoU and area range of METRICS
    metrics: dict[str, Any] = {
        name: mean_points(precision[iou, ..., area, last]) for name, (iou, area) in zip(METRICS, parts, strict=True)
    }
    metrics["ar100"] = mean_points(evaluator.eval["recall"][..., 0, last])
    curve = (precision[at_50, ..., 0, unlimited], evaluator.eval["scores"][at_50, ..., 0, unlimited])
    metrics["threshold"] = _best_threshold(*curve, evaluator.params.recThrs)
    metrics["map_at"] = {most: mean_points(precision[..., 0, i]) for i, most in enumerate(max_dets)}
    row_of = {category: row for row, category in enumerate(evaluator.params.catIds)}
    classes = list(zip(dataset.class_names, dataset.category_ids, strict=True))
    per_class = {name: mean_points(precision[:, :, row_of[category], 0, last]) for name, category in classes}
    metrics["per_class_ap50"] = {name: mean_points(precision[at_50, :, row_of[i], 0, last]) for name, i in classes}
    metrics["cut"] = sum(_of_one_class(result.labels) > max_dets[-1] for result in detections.values())
    metrics["crowded"] = sum(
        _of_one_class(record.labels[~record.crowd]) > max_dets[-1]
        for record in dataset.records
        if record.id in detections
    )
    return metrics, per_class


def mean_points(values: Any) -> float:
    """The mean of COCO's numbers in points, without -1, which marks classes without an object; NaN without any."""
    defined = values[values > -1]
    return float(defined.mean()) * 100 if defined.size else math.nan


def _of_one_class(labels: Any) -> int:
    return int(np.bincount(labels).max()) if len(labels) else 0


def coco_evaluator(
    detections: dict[int, Detections],
    dataset: CocoDataset,
    areas: Sequence[tuple[float, float]] | None = None,
    max_dets: Sequence[int] = (1, 10, MOST),
) -> Any:
    """A COCOeval that has accumulated over the images that `detections` has.

    areas: ranges of square pixels, both ends included, instead of COCO's all, small, medium, large.
    max_dets: how many detections of a class in an image count, rising: the last axis of its arrays.
    """
    coco_class, cocoeval_class = coco_engine()
    records = [record for record in dataset.records if record.id in detections]
    truth = [
        dict(image_id=record.id, category_id=category, bbox=_xywh(box), area=float(area), iscrowd=int(crowd))
        for record in records
        for box, label, crowd, area in zip(record.boxes_xyxy, record.labels, record.crowd, record.area, strict=True)
        for category in (dataset.category_ids if label == EVERY_CLASS else (dataset.category_ids[label],))
    ]
    results = [
        {**result, "area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0}
        for record in records
        for result in detections[record.id].to_coco(record.id, dataset.category_ids)
    ]
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
        evaluator = cocoeval_class(*sides, iouType="bbox")
        if areas is not None:
            evaluator.params.areaRng = [list(ends) for ends in areas]
            evaluator.params.areaRngLbl = [str(i) for i in range(len(areas))]
        evaluator.params.maxDets = list(max_dets)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def _best_threshold(precision: Any, scores: Any, recall: Any) -> float:
    """The score of 0.01..0.99 with the best F1, averaged over classes that have objects; 0.3 without any.

    precision [R, C] and scores [R, C] at the recalls [R] of COCO's curves; precision is -1 for classes without
    objects, and 0 at recalls that are never reached.
    """
    with_objects = precision[0] > -1
    if not with_objects.any():
        return 0.3
    f1 = 2 * precision * recall[:, None] / np.maximum(precision + recall[:, None], 1e-9)
    grid = np.arange(1, 100) / 100
    # At threshold t a class has the largest recall whose score is still t or more.
    reached = (scores[None] >= grid[:, None, None]) & (precision[None] > 0)  # [99, R, C]
    largest = reached.shape[1] - 1 - reached[:, ::-1].argmax(axis=1)  # [99, C]
    values = np.take_along_axis(f1, largest, axis=0) * reached.any(axis=1)
    mean = values[:, with_objects].mean(axis=1)
    # F1 is the same for all thresholds between two scores: the highest one invents least.
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
