"""All measurements of a detector on one dataset, for a person who decides what to do with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from runtime.datasets.annotations import CocoDataset
from runtime.evaluation.coco_eval import MOST
from runtime.evaluation.confusion import BACKGROUND, Confusion, confusion
from runtime.evaluation.curves import Curve, curves, recommended
from runtime.evaluation.evaluate import Evaluation, json_number, shown
from runtime.evaluation.sizes import Bucket, BucketScore, bucket_scores
from runtime.evaluation.voc import voc_ap
from runtime.files.text_table import text_table

Protocol = Literal["coco", "voc07", "voc12"]
PROTOCOLS: dict[Protocol, str] = {
    "coco": "COCO, IoU 0.50:0.95",
    "voc07": "VOC 2007, IoU 0.5, 11 points",
    "voc12": "VOC 2012, IoU 0.5, area",
}


@dataclass(frozen=True)
class ClassScore:
    """One class. APs in points, 0..100; precision, recall and F1 at the threshold, 0..1; NaN where undefined."""

    name: str
    ap: float
    """By the protocol."""
    ap50: float
    """By COCO's, at IoU 0.5, with as many detections as COCO looks at."""
    precision: float
    recall: float
    f1: float
    objects: int
    detections: int
    """Reported at the threshold."""
    threshold: float
    reached: bool
    """False where no threshold has the wanted precision: it is the one with the highest precision."""
    measured: bool
    """False where the class has no data to choose a threshold from: it is the one over all classes."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """An `Evaluation` read in detail, at the recommended threshold of each class."""

    evaluation: Evaluation
    dataset: CocoDataset
    """Only with the records that were judged."""
    protocol: Protocol
    precision: float | None
    """The precision that thresholds were chosen for; None for the best F1."""
    curves: tuple[Curve, ...]
    classes: tuple[ClassScore, ...]
    confusion: Confusion
    buckets: tuple[BucketScore, ...]

    @property
    def map(self) -> float:
        """Mean AP by the protocol over the classes that have objects, in points; NaN where none has."""
        values = [score.ap for score in self.classes if not math.isnan(score.ap)]
        return float(np.mean(values)) if values else math.nan

    @property
    def limits(self) -> NDArray[np.float64]:
        """[C] thresholds."""
        return np.array([score.threshold for score in self.classes])

    @property
    def thresholds(self) -> dict[str, float]:
        """The thresholds that were measured, by class, as a card holds them."""
        return {score.name: score.threshold for score in self.classes if score.measured}

    def to_json(self) -> dict[str, Any]:
        """JSON-ready: the evaluation's keys, and `protocol`, `classes`, `confusion` and `buckets`."""
        rounded, exact = ("ap", "ap50", "precision", "recall", "f1"), ("objects", "detections", "threshold", "reached")
        classes = {
            s.name: {key: _rounded(getattr(s, key)) for key in rounded} | {key: getattr(s, key) for key in exact}
            for s in self.classes
        }
        buckets = []
        for b in self.buckets:
            ends = {"low": b.bucket.low, "high": b.bucket.high if math.isfinite(b.bucket.high) else None}
            numbers = {key: _rounded(getattr(b, key)) for key in ("ap", "ap50", "ar100")}
            buckets.append({"name": b.bucket.name, **ends, **numbers, "objects": b.objects})
        return {
            **self.evaluation.to_json(),
            "protocol": {"name": self.protocol, "map": _rounded(self.map)},
            "wanted_precision": self.precision,
            "classes": classes,
            "confusion": {"names": [*self.confusion.names, BACKGROUND], "counts": self.confusion.counts.tolist()},
            "buckets": buckets,
        }

    def table(self) -> str:
        """The numbers as text: COCO's line, the protocol's mAP, the classes from best to worst, the buckets."""
        lines = [self.evaluation.headline(), ""]
        if self.protocol != "coco":
            lines += [f"mAP {shown(self.map)} ({PROTOCOLS[self.protocol]})", ""]
        lines += text_table(*class_rows(self.classes), left={"class"})
        lines += notes(self.classes)
        if self.buckets:
            lines += ["", *text_table(*bucket_rows(self.buckets), left={"size"})]
        return "\n".join([*lines, "", self.evaluation.footer()])


_UNREACHED, _UNMEASURED = "!", "?"


def notes(classes: Sequence[ClassScore]) -> list[str]:
    """What the marks at thresholds mean, for those that are there."""
    lines = []
    if not all(score.reached for score in classes):
        lines.append(f"{_UNREACHED} the wanted precision is out of reach: the threshold is that of the highest")
    if not all(score.measured for score in classes):
        lines.append(f"{_UNMEASURED} nothing to measure a threshold from: it is the one over all classes")
    return lines


def measure(
    evaluation: Evaluation,
    dataset: CocoDataset,
    protocol: Protocol = "coco",
    precision: float | None = None,
    buckets: Sequence[Bucket] = (),
) -> Measurement:
    """Read an evaluation of `dataset` in detail. `precision`: choose thresholds for it instead of the best F1.

    Raises ValueError for a precision that is not above 0 and at most 1.
    """
    # The pictures that were judged, and their boxes turned upright with them.
    dataset = replace(dataset, records=tuple(m.record for m in evaluation.matches))
    class_curves = curves(evaluation.matches, dataset.class_names)
    limits, measured = recommended(class_curves, evaluation.threshold, precision)
    aps = evaluation.per_class if protocol == "coco" else voc_ap(evaluation.detections, dataset, protocol)
    classes = []
    for curve, threshold in zip(class_curves, limits.tolist(), strict=True):
        point, choice = curve.at(threshold), curve.recommend(precision)
        ap50 = evaluation.per_class_ap50.get(curve.name, 100 * curve.ap50)
        scores = (aps[curve.name], ap50, point.precision, point.recall, point.f1)
        reported = int(np.count_nonzero(curve.scores >= np.float32(threshold)))
        reached, is_measured = choice is None or choice.reached, curve.name in measured
        classes.append(ClassScore(curve.name, *scores, curve.objects, reported, threshold, reached, is_measured))
    matrix = confusion(evaluation.matches, dataset.class_names, limits)
    most = max(evaluation.map_at, default=MOST)
    sizes = bucket_scores(evaluation.detections, dataset, buckets, most) if buckets else ()
    return Measurement(evaluation, dataset, protocol, precision, class_curves, tuple(classes), matrix, sizes)


def class_rows(classes: Sequence[ClassScore]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of the table of classes, the best AP first and classes without objects last."""
    head = ["class", "AP", "AP50", "precision", "recall", "F1", "objects", "reported", "threshold"]
    ranked = sorted(classes, key=lambda s: (math.isnan(s.ap), -s.ap if not math.isnan(s.ap) else 0.0))
    rows = []
    for s in ranked:
        points = map(shown, (s.ap, s.ap50, 100 * s.precision, 100 * s.recall, 100 * s.f1))
        mark = _UNMEASURED if not s.measured else "" if s.reached else _UNREACHED
        rows.append([s.name, *points, str(s.objects), str(s.detections), f"{s.threshold:.3f}{mark}"])
    return head, rows


def bucket_rows(buckets: Sequence[BucketScore]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of the table of sizes."""
    names = [f"{b.bucket.name} ({b.bucket.low:g}-{b.bucket.high:g} px)" for b in buckets]
    rows = [[n, *map(shown, (b.ap, b.ap50, b.ar100)), str(b.objects)] for n, b in zip(names, buckets, strict=True)]
    return ["size", "AP", "AP50", "AR100", "objects"], rows


def _rounded(value: float) -> float | None:
    return json_number(value, digits=4)
