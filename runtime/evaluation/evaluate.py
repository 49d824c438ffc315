"""COCO evaluation of a `Detector`: the one measurement for training, export and deployment."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from runtime.datasets.annotations import CocoDataset, DatasetError, ImageRecord
from runtime.datasets.orientation import oriented
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.evaluation.coco_eval import METRICS, MOST, EvaluationError, coco_engine, coco_metrics
from runtime.evaluation.curves import curves, recommended
from runtime.evaluation.matching import ImageMatch, match
from runtime.files.text_table import text_table
from runtime.images.image import Image, ImageError, read_image

PartResult = tuple[dict[int, Detections], list["ImageRecord"], list[tuple[Path, str]]]
"""Detections by image id, the records that were judged, and the files that could not be read with the reasons."""


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
    """Mean recall over IoU 0.50:0.95 with at most 100 detections of a class in an image, or the last of `map_at`."""
    threshold: float
    """Score with the best F1 at IoU 0.50, averaged over classes: a start for an application."""
    per_class: dict[str, float]
    """AP over IoU 0.50:0.95 of each class, in label order."""
    images: int
    """Images that were judged."""
    seconds: float
    """Reading and detecting, without the matching."""
    skipped: tuple[tuple[Path, str], ...]
    """Image files that could not be read, and why; their objects are left out."""
    detections: dict[int, Detections]
    """Detections by image id, down to the graph's own low score; not in `to_json`."""
    matches: tuple[ImageMatch, ...] = ()
    """Which detection found which object at IoU 0.5, image by image; not in `to_json`."""
    thresholds: dict[str, float] = field(default_factory=dict)
    """Score with the best F1 at IoU 0.50 of each class, without classes that have no object or are never found."""
    map_at: dict[int, float] = field(default_factory=dict)
    """mAP for each limit on the detections of a class in an image; all other metrics are those at the last limit."""
    per_class_ap50: dict[str, float] = field(default_factory=dict)
    """AP at IoU 0.50 of each class, in label order."""
    cut: int = 0
    """Images with more detections of a class than the last limit."""
    crowded: int = 0
    """Images with more objects of a class than the last limit."""

    def to_json(self) -> dict[str, Any]:
        """JSON-ready object: NaN becomes None, numbers have 3 decimals."""
        metrics = {name: json_number(getattr(self, name)) for name in (*METRICS, "ar100", "threshold")}
        return {
            **metrics,
            "per_class": {name: json_number(value) for name, value in self.per_class.items()},
            "max_dets": {str(most): json_number(value) for most, value in self.map_at.items()},
            "images": self.images,
            "seconds": round(self.seconds, 3),
            "skipped": [{"path": str(path), "reason": reason} for path, reason in self.skipped],
        }

    def table(self) -> str:
        """The metrics as text: one line over all, then the classes from best to worst."""
        lines = [self.headline(), ""]
        ranked = sorted(self.per_class.items(), key=lambda item: -math.inf if math.isnan(item[1]) else item[1])[::-1]
        lines += text_table(["class", "AP"], [[name, shown(value)] for name, value in ranked], left={"class"})
        return "\n".join([*lines, "", self.footer()])

    def headline(self) -> str:
        """COCO's numbers over all classes: a line of names and a line of values."""
        head = ("mAP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
        values = map(shown, (getattr(self, name) for name in (*METRICS, "ar100")))
        return "\n".join("".join(f"{text:>8}" for text in line) for line in (head, values))

    def nan_note(self) -> str:
        """Why mAP is NaN; '' where it is a number."""
        if not math.isnan(self.map):
            return ""
        return f"mAP is nan: there is no object to find in any of the {self.images} images that were judged"

    def cap_note(self) -> str:
        """The effect of the limit on detections (100 in COCO) on these images; '' where no image is beyond it."""
        if not (self.cut or self.crowded):
            return ""
        most = max(self.map_at, default=MOST)
        crowded = f", {self.crowded} of {self.images} have more objects of one" if self.crowded else ""
        return (
            f"mAP reads the {most} best detections of a class in an image: {self.cut} of {self.images} images have "
            f"more{crowded}; --max-dets {most},{5 * most} reads more. The threshold is read from all"
        )

    def footer(self) -> str:
        """The threshold over all classes, the time, and what could not be read."""
        line = f"best F1 at threshold {self.threshold:.2f}; {self.images} images in {self.seconds:.1f} s"
        if len(self.map_at) > 1:
            line += "\nmAP by detections of a class in an image: " + ", ".join(
                f"{shown(value)} at {most}" for most, value in self.map_at.items()
            )
        for note in filter(None, (self.nan_note(), self.cap_note())):
            line += f"\n{note}"
        if self.skipped:
            line += f"\n{len(self.skipped)} unreadable images left out, the first: {self.skipped[0][0]}"
        return line


def evaluate(
    detector: Detector,
    dataset: CocoDataset,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
    part: tuple[int, int] = (0, 1),
    gather: Callable[[PartResult], list[PartResult]] | None = None,
    max_dets: Sequence[int] = (MOST,),
) -> Evaluation:
    """Detect in every image of `dataset` at the graph's low score, and compute COCO's box metrics.

    `progress(done, total)` is called after every batch. Files that cannot be read, or whose size is not the annotated
    one (by the rule of `runtime.datasets.orientation`), are left out and listed in `skipped`. Where processes share the
    work, this one detects in the images i, i + n, ... of `part` (i, n), and `gather` gives the results of all processes
    to each, so that all compute the same metrics. `max_dets`, rising: limits on the detections of a class in an image.
    Raises `EvaluationError` when the classes differ, when no image can be judged, or when pycocotools is not installed.
    """
    if batch_size < 1:
        raise EvaluationError.of("batch_size", f"expected at least 1, got {batch_size}")
    if detector.class_names != dataset.class_names:
        raise EvaluationError.at(
            dataset.annotations,
            f"its classes differ from the model's: {_difference(detector, dataset)}; "
            "read it with read_dataset(..., classes=detector.class_names)",
        )
    coco_engine()  # before the long work, not after it
    started = time.perf_counter()
    detections: dict[int, Detections] = {}
    judged: list[ImageRecord] = []
    skipped: list[tuple[Path, str]] = []
    done = 0
    records = dataset.records[part[0] :: part[1]]
    for batch in _read_ahead(records, batch_size):
        readable = [(record, image) for record, image in batch if not isinstance(image, ImageError)]
        skipped += [(record.path, image.reason) for record, image in batch if isinstance(image, ImageError)]
        judged += [record for record, _ in readable]
        results = detector([image for _, image in readable], threshold=0.0)
        detections |= {record.id: result for (record, _), result in zip(readable, results, strict=True)}
        done += len(batch)
        if progress is not None:
            progress(done, len(records))
    if gather is not None:
        parts = gather((detections, judged, skipped))
        record_of = {record.id: record for _, records, _ in parts for record in records}
        judged = [record_of[record.id] for record in dataset.records if record.id in record_of]
        results_of = {image_id: result for of_part, *_ in parts for image_id, result in of_part.items()}
        detections = {record.id: results_of[record.id] for record in judged}
        skipped = [file for *_, files in parts for file in files]
    seconds = time.perf_counter() - started
    if not detections:
        raise EvaluationError.at(
            dataset.annotations,
            f"none of its {len(dataset.records)} images can be read; {skipped[0][0]}: {skipped[0][1]}",
        )
    dataset = replace(dataset, records=tuple(judged))
    return evaluate_detections(detections, dataset, seconds, tuple(skipped), max_dets)


def check_max_dets(max_dets: Sequence[int]) -> None:
    """Raise `EvaluationError` unless these are limits that COCO's metrics can have."""
    if not max_dets or list(max_dets) != sorted({*max_dets}) or max_dets[0] < 1:
        raise EvaluationError.of("max_dets", f"expected rising whole numbers of at least 1, got {list(max_dets)}")


def evaluate_detections(
    detections: dict[int, Detections],
    dataset: CocoDataset,
    seconds: float = 0.0,
    skipped: tuple[tuple[Path, str], ...] = (),
    max_dets: Sequence[int] = (MOST,),
) -> Evaluation:
    """The evaluation of detections by image id; `dataset` has the records of these images.

    seconds, skipped: as the evaluation has them. Raises `EvaluationError`.
    """
    check_max_dets(max_dets)
    metrics, per_class = coco_metrics(detections, dataset, max_dets)
    metrics |= {"per_class": per_class, "images": len(detections), "seconds": seconds, "skipped": skipped}
    matches = match(detections, dataset)
    _, thresholds = recommended(curves(matches, dataset.class_names), metrics["threshold"])
    return Evaluation(**metrics, detections=detections, matches=matches, thresholds=thresholds)


_Read = tuple[ImageRecord, Image | ImageError]


def _read_ahead(records: Sequence[ImageRecord], batch_size: int) -> Iterator[list[_Read]]:
    """Batches of (record, picture or the error of reading it); the next batch is read meanwhile."""

    def read(record: ImageRecord) -> _Read:
        try:
            image = read_image(record.path)
            return oriented(record, (image.shape[0], image.shape[1])), image
        except ImageError as error:
            return record, error

    with ThreadPoolExecutor(2) as readers:
        pending: list[Future[_Read]] = []
        for start in range(0, len(records), batch_size):
            following = [readers.submit(read, record) for record in records[start : start + batch_size]]
            if pending:
                yield [future.result() for future in pending]
            pending = following
        if pending:
            yield [future.result() for future in pending]


def require_objects(dataset: CocoDataset) -> None:
    """Raise `DatasetError` for a data set without an object to find: all its metrics would be NaN."""
    if all(record.crowd.all() for record in dataset.records):
        raise DatasetError.at(
            dataset.annotations,
            f"none of its {len(dataset)} images has an object to find, so that there is no mAP "
            f"({dataset.problems.summary() or 'no annotation was found: do the files lie where they are looked for?'})",
        )


def _difference(detector: Detector, dataset: CocoDataset) -> str:
    model, data = set(detector.class_names), set(dataset.class_names)
    parts = [f"only the model has {', '.join(sorted(model - data)[:5])}"] if model - data else []
    parts += [f"only the annotations have {', '.join(sorted(data - model)[:5])}"] if data - model else []
    return "; ".join(parts) or "the same names in another order"


def json_number(value: float, digits: int = 3) -> float | None:
    """A number for JSON, rounded to `digits` decimals; None for NaN, which JSON does not have."""
    return round(value, digits) if math.isfinite(value) else None


def shown(value: float) -> str:
    """A number of points with one decimal; - for NaN."""
    return "-" if math.isnan(value) else f"{value:.1f}"
