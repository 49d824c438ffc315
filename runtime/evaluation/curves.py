"""Precision and recall of each class over the score, and the threshold that suits an application."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isodet.errors import ArgumentError
from runtime.evaluation.matching import IGNORED, ImageMatch

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """Precision, recall and F1 of a class at one threshold; NaN without detections (precision) or objects (recall)."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, eq=False)
class Curve:
    """The n judged detections of one class in all images, by falling score, at IoU 0.5."""

    name: str
    objects: int
    scores: Values
    """[n]"""
    hits: NDArray[np.bool_]
    """[n], True where an object was found."""

    @property
    def recall(self) -> Values:
        """[n] objects found by the best 1..n detections, of all; NaN without objects."""
        return np.cumsum(self.hits) / (self.objects or math.nan)

    @property
    def precision(self) -> Values:
        """[n] objects found by the best 1..n detections, of those detections."""
        return np.cumsum(self.hits) / np.arange(1, len(self.hits) + 1)

    @property
    def f1(self) -> Values:
        """[n] the harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN); NaN without objects."""
        return 2 * np.cumsum(self.hits) / (np.arange(1, len(self.hits) + 1) + (self.objects or math.nan))

    def sampled(self) -> Values:
        """[101] precision at the recalls 0, 0.01, .. 1 as COCO reads it: the best at that recall or a higher one."""
        envelope = np.maximum.accumulate(self.precision[::-1])[::-1]
        index = np.searchsorted(self.recall, np.linspace(0, 1, 101), side="left")
        return np.concatenate([envelope, [0.0]])[np.minimum(index, len(envelope))]

    @property
    def ap50(self) -> float:
        """COCO's AP at IoU 0.5, 0..1; NaN without objects."""
        return float(self.sampled().mean()) if self.objects else math.nan

    def at(self, threshold: float) -> Point:
        """Precision, recall and F1 of the detections that score at least `threshold`."""
        kept = int(np.count_nonzero(self.scores >= np.float32(threshold)))
        hits = int(np.count_nonzero(self.hits[:kept]))
        objects = self.objects or math.nan
        return Point(hits / (kept or math.nan), hits / objects, 2 * hits / (kept + objects))

    def recommend(self, precision: float | None = None) -> Recommendation | None:
        """The threshold with the best F1, or the one with the most recall among those that reach `precision`.

        Where no threshold reaches it, the one with the highest precision, with `reached` False. None for a class
        without an object, or without a detection that finds one: nothing can be learned about its threshold.
        """
        if not self.objects or not self.hits.any():
            return None
        # A threshold keeps all detections of a score or none, so curves are read where a score ends.
        ends = np.flatnonzero(np.append(self.scores[1:] < self.scores[:-1], True))
        value = self.f1[ends] if precision is None else self.precision[ends]
        reaching = np.flatnonzero(value >= (math.inf if precision is None else precision))
        # Among equal values the first has the highest score: it invents least.
        chosen = int(ends[reaching[-1] if len(reaching) else value.argmax()])
        following = self.scores[chosen + 1] if chosen + 1 < len(self.scores) else 0.0
        threshold = _rounded_down(float(self.scores[chosen]), float(following))
        return Recommendation(threshold, reached=precision is None or len(reaching) > 0)


@dataclass(frozen=True)
class Recommendation:
    threshold: float
    reached: bool
    """False where a wanted precision was out of reach."""


def curves(matches: Sequence[ImageMatch], class_names: Sequence[str]) -> tuple[Curve, ...]:
    """A `Curve` for each class, in label order."""
    objects = np.zeros(len(class_names), np.int64)  # [C] that can be found: without crowd regions
    for m in matches:
        objects += np.bincount(m.record.labels[~m.record.crowd], minlength=len(objects))
    labels = np.concatenate([np.zeros(0, np.int32), *(m.detections.labels for m in matches)])
    scores = np.concatenate([np.zeros(0, np.float32), *(m.detections.scores for m in matches)])
    object_of = np.concatenate([np.zeros(0, np.int64), *(m.object_of for m in matches)])
    order = np.argsort(-scores, kind="stable")
    order = order[object_of[order] != IGNORED]
    class_curves = []
    for label, name in enumerate(class_names):
        of_class = order[labels[order] == label]
        hits = object_of[of_class] >= 0
        class_curves.append(Curve(name, int(objects[label]), scores[of_class].astype(float), hits))
    return tuple(class_curves)


def recommended(
    class_curves: Sequence[Curve], fallback: float, precision: float | None = None
) -> tuple[Values, dict[str, float]]:
    """Thresholds [C], and by class name those that were measured; the other thresholds are `fallback`."""
    if precision is not None and not 0 < precision <= 1:
        raise ArgumentError.of("precision", f"expected a number above 0 and at most 1, got {precision}")
    chosen = {curve.name: curve.recommend(precision) for curve in class_curves}
    measured = {name: choice.threshold for name, choice in chosen.items() if choice is not None}
    return np.array([measured.get(curve.name, fallback) for curve in class_curves], np.float64), measured


def _rounded_down(score: float, following: float) -> float:
    """`score` with three decimals where that keeps the same detections: a threshold should not sit on one."""
    short = math.floor(score * 1000) / 1000
    return short if np.float32(short) > following else score  # compared as detectors compare them
