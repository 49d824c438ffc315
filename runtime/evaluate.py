"""COCO evaluation of a `Detector`: the one measurement for training, export and deployment."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from runtime.coco import CocoDataset, ImageRecord
from runtime.curves import curves, recommended
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.image import Image, ImageError, read_image
from runtime.matching import ImageMatch, match


class EvaluationError(ValueError):
    """A detector and a dataset that cannot be judged together; the message says why."""


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
    matches: tuple[ImageMatch, ...] = ()
    """Which detection found which object at IoU 0.5, image by image; not in `to_json`."""
    thresholds: dict[str, float] = field(default_factory=dict)
    """Score with the best F1 at IoU 0.50 of each class; a class that is not there, or never found, is left out."""

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
        lines = [self.headline(), ""]
        ranked = sorted(self.per_class.items(), key=lambda item: -math.inf if math.isnan(item[1]) else item[1])[::-1]
        width = max(len("class"), *(len(name) for name, _ in ranked))
        lines += [f"{'class':<{width}}{'AP':>8}", *(f"{name:<{width}}{_shown(value):>8}" for name, value in ranked)]
        return "\n".join([*lines, "", self.footer()])

    def headline(self) -> str:
        """COCO's numbers over all classes: a line of names and a line of values."""
        head = {"mAP": self.map, "AP50": self.ap50, "AP75": self.ap75, "APs": self.ap_small}
        head |= {"APm": self.ap_medium, "APl": self.ap_large, "AR100": self.ar100}
        return "".join(f"{n:>8}" for n in head) + "\n" + "".join(f"{_shown(value):>8}" for value in head.values())

    def footer(self) -> str:
        """The threshold over all classes, the time, and what could not be read."""
        line = f"best F1 at threshold {self.threshold:.2f}; {self.images} images in {self.seconds:.1f} s"
        if self.skipped:
            line += f"\n{len(self.skipped)} unreadable images left out, the first: {self.skipped[0][0]}"
        return line


_STATS = ("map", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def evaluate(
    detector: Detector,
    dataset: CocoDataset,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Detect in every image of `dataset` at the graph's low score and judge by COCO's box metrics.

    `progress(done, total)` is called after every batch. Files that cannot be read are left out and listed
    in `skipped`. Raises `EvaluationError` when the classes differ, when no image can be read, or when
    pycocotools is not installed.
    """
    if batch_size < 1:
        raise EvaluationError(f"batch_size: expected at least 1, got {batch_size}")
    if detector.class_names != dataset.class_names:
        raise EvaluationError(
            f"{dataset.annotations}: its classes differ from the model's: {_difference(detector, dataset)}; "
            "read it with read_coco(..., classes=detector.class_names)"
        )
    coco_engine()  # before the long work, not after it
    started = time.perf_counter()
    found: dict[int, Detections] = {}
    skipped: list[tuple[Path, str]] = []
    done = 0
    for batch in _read_ahead(dataset.records, batch_size):
        readable = [(record, image) for record, image in batch if not isinstance(image, ImageError)]
        skipped += [(record.path, image.reason) for record, image in batch if isinstance(image, ImageError)]
        results = detector([image for _, image in readable], threshold=0.0)
        found |= {record.id: result for (record, _), result in zip(readable, results, strict=True)}
        done += len(batch)
        if progress is not None:
            progress(done, len(dataset.records))
    seconds = time.perf_counter() - started
    if not found:
        raise EvaluationError(f"{dataset.annotations}: none of its {len(dataset.records)} images can be read")
    metrics, per_class = coco_metrics(found, dataset)
    matches = match(found, dataset)
    _, thresholds = recommended(curves(matches, dataset.class_names), metrics["threshold"])
    return Evaluation(
        **metrics, per_class=per_class, images=len(found), seconds=seconds, skipped=tuple(skipped), detections=found,
        matches=matches, thresholds=thresholds,
    )  # fmt: skip


def coco_metrics(found: dict[int, Detections], dataset: CocoDataset) -> tuple[dict[str, float], dict[str, float]]:
    """COCO's metrics by name and the AP by class name, in points, over the images that `found` has."""
    judge = coco_judge(found, dataset)
    with contextlib.redirect_stdout(io.StringIO()):
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
            "image_id": record.id, "category_id": dataset.category_ids[label], "bbox": _xywh(box),
            "area": float(area), "iscrowd": int(crowd),
        }
        for record in records
        for box, label, crowd, area in zip(record.boxes_xyxy, record.labels, record.crowd, record.area, strict=True)
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


_Read = tuple[ImageRecord, Image | ImageError]


def _read_ahead(records: Sequence[ImageRecord], batch_size: int) -> Iterator[list[_Read]]:
    """Batches of (record, picture or what is wrong with it), the next one being read meanwhile."""

    def read(record: ImageRecord) -> _Read:
        try:
            return record, read_image(record.path)
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
