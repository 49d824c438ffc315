"""Everything that is measured of a detector on one dataset, for a person who decides what to do with it."""

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
from runtime.evaluation.evaluate import Evaluation
from runtime.evaluation.sizes import Bucket, BucketScore, bucket_scores
from runtime.evaluation.voc import voc_ap
from runtime.files.text_table import text_table

Protocol = Literal["coco", "voc07", "voc12"]
PROTOCOLS: dict[Protocol, str] = {
    "coco": "COCO, IoU 0.50:0.95", "voc07": "VOC 2007, IoU 0.5, 11 points", "voc12": "VOC 2012, IoU 0.5, area",
}  # fmt: skip


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
    """False where a wanted precision was out of reach: the threshold is that of the highest."""
    measured: bool
    """False where the class has nothing to learn a threshold from: it is the one over all classes."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """An `Evaluation` read in detail, at the recommended threshold of each class."""

    evaluation: Evaluation
    dataset: CocoDataset
    """With the records that were judged only."""
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
        return {
            **self.evaluation.to_json(),
            "protocol": {"name": self.protocol, "map": number(self.map)},
            "wanted_precision": self.precision,
            "classes": {
                s.name: {
                    "ap": number(s.ap), "ap50": number(s.ap50), "precision": number(s.precision),
                    "recall": number(s.recall), "f1": number(s.f1), "objects": s.objects, "detections": s.detections,
                    "threshold": s.threshold, "reached": s.reached,
                }
                for s in self.classes
            },
            "confusion": {"names": [*self.confusion.names, BACKGROUND], "counts": self.confusion.counts.tolist()},
            "buckets": [
                {
                    "name": b.bucket.name, "low": b.bucket.low,
                    "high": b.bucket.high if math.isfinite(b.bucket.high) else None,
                    "ap": number(b.ap), "ap50": number(b.ap50), "ar100": number(b.ar100), "objects": b.objects,
                }
                for b in self.buckets
            ],
        }  # fmt: skip

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
        classes.append(
            ClassScore(
                curve.name, aps[curve.name], ap50, point.precision, point.recall, point.f1, curve.objects,
                int(np.count_nonzero(curve.scores >= np.float32(threshold))), threshold,
                choice is None or choice.reached, curve.name in measured,
            )
        )  # fmt: skip
    return Measurement(
        evaluation, dataset, protocol, precision, class_curves, tuple(classes),
        confusion(evaluation.matches, dataset.class_names, limits),
        bucket_scores(evaluation.detections, dataset, buckets, max(evaluation.map_at, default=MOST)) if buckets else (),
    )  # fmt: skip


def class_rows(classes: Sequence[ClassScore]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of the table of classes, the best AP first and classes without objects last."""
    head = ["class", "AP", "AP50", "precision", "recall", "F1", "objects", "reported", "threshold"]
    ranked = sorted(classes, key=lambda s: (math.isnan(s.ap), -s.ap if not math.isnan(s.ap) else 0.0))
    rows = [
        [
            s.name, shown(s.ap), shown(s.ap50), shown(100 * s.precision), shown(100 * s.recall), shown(100 * s.f1),
            str(s.objects), str(s.detections),
            f"{s.threshold:.3f}" + (_UNMEASURED if not s.measured else "" if s.reached else _UNREACHED),
        ]
        for s in ranked
    ]  # fmt: skip
    return head, rows


def bucket_rows(buckets: Sequence[BucketScore]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of the table of sizes."""
    rows = [
        [f"{b.bucket.name} ({b.bucket.low:g}-{b.bucket.high:g} px)", shown(b.ap), shown(b.ap50), shown(b.ar100),
         str(b.objects)]
        for b in buckets
    ]  # fmt: skip
    return ["size", "AP", "AP50", "AR100", "objects"], rows


def shown(value: float) -> str:
    """A number of points with one decimal, - where there is none."""
    return "-" if math.isnan(value) else f"{value:.1f}"


def number(value: float) -> float | None:
    """A number for JSON, which has no NaN, with 4 decimals."""
    return None if math.isnan(value) else round(value, 4)
