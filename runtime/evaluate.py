"""COCO evaluation of a `Detector`: the one measurement for training, export and deployment."""

from __future__ import annotations

import contextlib
import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime.detections import Detections
from runtime.detector import Detector
from runtime.header import upright
from runtime.image import Image, ImageError, read_image
from runtime.records import EVERY_CLASS, CocoDataset, ImageRecord


class EvaluationError(ValueError):
    """A detector and a dataset that cannot be judged together; the message says why."""


Found = tuple[dict[int, Detections], list["ImageRecord"], list[tuple[Path, str]]]
"""Detections by image id, and the files that could not be read with the reasons."""


@dataclass(frozen=True)
class Evaluation:
    """COCO's box metrics in points, 0..100; NaN where there is no object to find."""

    map: float
    """Mean AP over IoU 0.50:0.95 and classes."""
    ap50: float
    ap75: float
    ap_small: float
    """Objects under 32^2 square pixels."""
    ap_medium: float
    ap_large: float
    """Objects over 96^2 square pixels."""
    ar100: float
    """Mean recall over IoU 0.50:0.95 with at most 100 detections per image."""
    threshold: float
    """Score with the best F1 at IoU 0.50, averaged over classes: what an application may start from."""
    per_class: dict[str, float]
    """AP over IoU 0.50:0.95 of each class, in label order."""
    images: int
    """Images that were judged."""
    seconds: float
    """Reading and detecting, without the matching."""
    skipped: tuple[tuple[Path, str], ...]
    """Image files that could not be read, and why; their objects are left out."""
    detections: dict[int, Detections]
    """Image id to what was found, down to the graph's own low score; not in `to_json`."""

    def to_json(self) -> dict[str, Any]:
        """JSON-ready object: NaN becomes None, numbers have 3 decimals."""
        metrics = {name: _json_number(getattr(self, name)) for name in (*_STATS, "ar100", "threshold")}
        return {
            **metrics,
            "per_class": {name: _json_number(value) for name, value in self.per_class.items()},
            "images": self.images,
            "seconds": round(self.seconds, 3),
            "skipped": [{"path": str(path), "reason": reason} for path, reason in self.skipped],
        }

    def table(self) -> str:
        """The metrics as text: one line over all, then the classes from best to worst."""
        head = {"mAP": self.map, "AP50": self.ap50, "AP75": self.ap75, "APs": self.ap_small}
        head |= {"APm": self.ap_medium, "APl": self.ap_large, "AR100": self.ar100}
        lines = ["".join(f"{name:>8}" for name in head), "".join(f"{_shown(value):>8}" for value in head.values()), ""]
        ranked = sorted(self.per_class.items(), key=lambda item: -math.inf if math.isnan(item[1]) else item[1])[::-1]
        width = max(len("class"), *(len(name) for name, _ in ranked))
        lines += [f"{'class':<{width}}{'AP':>8}", *(f"{name:<{width}}{_shown(value):>8}" for name, value in ranked)]
        lines += ["", f"best F1 at threshold {self.threshold:.2f}; {self.images} images in {self.seconds:.1f} s"]
        if self.skipped:
            lines.append(f"{len(self.skipped)} unreadable images left out, the first: {self.skipped[0][0]}")
        return "\n".join(lines)


_STATS = ("map", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def evaluate(
    detector: Detector,
    dataset: CocoDataset,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
    part: tuple[int, int] = (0, 1),
    gather: Callable[[Found], list[Found]] | None = None,
) -> Evaluation:
    """Detect in every image of `dataset` at the graph's low score and judge by COCO's box metrics.

    `progress(done, total)` is called after every batch. Files that cannot be read, or whose size is not the annotated
    one (by the rule of `runtime.header`), are left out and listed in `skipped`. Where processes share the work, this
    one detects in image i, i + n, ... of `part` (i, n), and `gather` gives what each of them found to all, which then
    judge the same. Raises `EvaluationError` when the classes differ, when no image can be judged, or when pycocotools
    is not installed.
    """
    if batch_size < 1:
        raise EvaluationError(f"batch_size: expected at least 1, got {batch_size}")
    if detector.class_names != dataset.class_names:
        raise EvaluationError(
            f"{dataset.annotations}: its classes differ from the model's: {_difference(detector, dataset)}; "
            "read it with read_dataset(..., classes=detector.class_names)"
        )
    _import_pycocotools()  # before the long work, not after it
    started = time.perf_counter()
    found: dict[int, Detections] = {}
    judged: list[ImageRecord] = []
    skipped: list[tuple[Path, str]] = []
    done = 0
    records = dataset.records[part[0] :: part[1]]
    for batch in _read_ahead(records, batch_size):
        readable = [(record, image) for record, image in batch if not isinstance(image, ImageError)]
        skipped += [(record.path, image.reason) for record, image in batch if isinstance(image, ImageError)]
        judged += [record for record, _ in readable]
        results = detector([image for _, image in readable], threshold=0.0)
        found |= {record.id: result for (record, _), result in zip(readable, results, strict=True)}
        done += len(batch)
        if progress is not None:
            progress(done, len(records))
    if gather is not None:
        parts = gather((found, judged, skipped))
        everywhere = {record.id: (record, mine[record.id]) for mine, records, _ in parts for record in records}
        in_order = [everywhere[record.id] for record in dataset.records if record.id in everywhere]
        judged, found = [record for record, _ in in_order], {record.id: result for record, result in in_order}
        skipped = [file for *_, files in parts for file in files]
    seconds = time.perf_counter() - started
    if not found:
        raise EvaluationError(
            f"{dataset.annotations}: none of its {len(dataset.records)} images can be read; {skipped[0][0]}: "
            f"{skipped[0][1]}"
        )
    metrics, per_class = coco_metrics(found, replace(dataset, records=tuple(judged)))
    return Evaluation(
        **metrics, per_class=per_class, images=len(found), seconds=seconds, skipped=tuple(skipped), detections=found
    )


def coco_metrics(found: dict[int, Detections], dataset: CocoDataset) -> tuple[dict[str, float], dict[str, float]]:
    """COCO's metrics by name and the AP by class name, in points, over the images that `found` has.

    Crowd boxes are COCO's: a detection that is matched to no object and lies in one (by the share of its own area that
    is inside) counts neither as right nor as wrong. One that stands for every class is a crowd of each.
    """
    coco_class, cocoeval_class = _import_pycocotools()
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
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    metrics = {name: _points(judge.stats[i]) for i, name in enumerate(_STATS)}
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


def _import_pycocotools() -> tuple[Any, Any]:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise EvaluationError(f"evaluation needs pycocotools: pip install pycocotools ({error})") from error
    return COCO, COCOeval


_Read = tuple[ImageRecord, Image | ImageError]


def _read_ahead(records: Sequence[ImageRecord], batch_size: int) -> Iterator[list[_Read]]:
    """Batches of (record, picture or what is wrong with it), the next one being read meanwhile."""

    def read(record: ImageRecord) -> _Read:
        try:
            image = read_image(record.path)
            return upright(record, (image.shape[0], image.shape[1])), image
        except ImageError as error:
            return record, error

    with ThreadPoolExecutor(2) as readers:
        pending = None
        for start in range(0, len(records), batch_size):
            following = [readers.submit(read, record) for record in records[start : start + batch_size]]
            if pending is not None:
                yield [future.result() for future in pending]
            pending = following
        if pending is not None:
            yield [future.result() for future in pending]


def _difference(detector: Detector, dataset: CocoDataset) -> str:
    model, data = set(detector.class_names), set(dataset.class_names)
    parts = [f"only the model has {', '.join(sorted(model - data)[:5])}"] if model - data else []
    parts += [f"only the annotations have {', '.join(sorted(data - model)[:5])}"] if data - model else []
    return "; ".join(parts) or "the same names in another order"


def _xywh(box: Any) -> list[float]:
    x1, y1, x2, y2 = (float(v) for v in box)
    return [x1, y1, x2 - x1, y2 - y1]


def _points(value: Any) -> float:
    return math.nan if value < 0 else float(value) * 100


def _json_number(value: float) -> float | None:
    return None if not np.isfinite(value) else round(value, 3)


def _shown(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"
