"""How far two detectors' boxes are apart: pairs of the same object, and what only one of them found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.detections import Detections
from runtime.evaluation.matching import IOU, pairwise_iou

MIN_SCORE = 0.1
"""Unless told otherwise, detections below it are not looked at: they come and go with the last digit."""


@dataclass(frozen=True)
class DetectionDiff:
    """Reference detections of at least a score, each paired with the other detector's best same-class box."""

    boxes: int
    """Reference detections that were looked at."""
    unmatched: int
    """Those without a box of the same class at IoU 0.5 or more."""
    box_mean_px: float
    """Mean over pairs of the largest coordinate difference, source pixels."""
    box_max_px: float
    score_mean: float
    score_max: float
    extra: int = 0
    """The other detector's of at least the score that no reference detection, whatever its score, is a pair of."""


@dataclass(frozen=True)
class ImageDiff:
    """The same for one image."""

    image_id: int
    boxes: int
    unmatched: int
    extra: int
    box_max_px: float
    score_max: float
    moved: float
    """What changed, in objects: over pairs, the reference's score times 1 - IoU, and the difference of scores; and
    the score of every detection that only one of the two has."""


@dataclass(frozen=True, eq=False)
class _Pairs:
    """The pairs of one image, of reference detections of at least a score."""

    drift: ImageDiff
    box_px: NDArray[np.float64]
    score: NDArray[np.float64]


def compare_detections(
    reference: Mapping[int, Detections], other: Mapping[int, Detections], min_score: float = MIN_SCORE
) -> DetectionDiff:
    """Pair the detections of two detectors image by image, in order of score, each box used once."""
    images = [_of_image(image_id, expected, other[image_id], min_score) for image_id, expected in reference.items()]
    boxes, scores = (np.concatenate([getattr(i, name) for i in images] or [[]]) for name in ("box_px", "score"))
    some = len(boxes) > 0
    return DetectionDiff(
        sum(i.drift.boxes for i in images), sum(i.drift.unmatched for i in images),
        float(boxes.mean()) if some else 0.0, float(boxes.max()) if some else 0.0,
        float(scores.mean()) if some else 0.0, float(scores.max()) if some else 0.0,
        sum(i.drift.extra for i in images),
    )  # fmt: skip


def compare_by_image(
    reference: Mapping[int, Detections], other: Mapping[int, Detections], min_score: float = MIN_SCORE
) -> tuple[ImageDiff, ...]:
    """Every image, the one that moved most first."""
    images = [_of_image(i, expected, other[i], min_score).drift for i, expected in reference.items()]
    return tuple(sorted(images, key=lambda image: -image.moved))


def partners(expected: Detections, found: Detections) -> NDArray[np.int64]:
    """[D] for each of `expected`, in order of score, the index of its pair in `found`, or -1."""
    overlaps = pairwise_iou(expected.boxes_xyxy, found.boxes_xyxy)
    overlaps[expected.labels[:, None] != found.labels[None]] = 0
    taken = np.full(len(expected), -1, np.int64)
    for i in np.flatnonzero((overlaps >= IOU).any(axis=1)):
        j = int(overlaps[i].argmax())
        if overlaps[i, j] >= IOU:
            taken[i] = j
            overlaps[:, j] = 0
    return taken


def _of_image(image_id: int, expected: Detections, found: Detections, min_score: float) -> _Pairs:
    every = partners(expected, found)
    looked_at = expected.scores >= np.float32(min_score)
    first = np.flatnonzero(looked_at & (every >= 0))
    second = every[first]
    a, b = expected.boxes_xyxy[first], found.boxes_xyxy[second]
    box_px = np.abs(a - b).astype(np.float64).max(axis=1, initial=0)
    score = np.abs(expected.scores[first].astype(np.float64) - found.scores[second])
    overlap = np.diagonal(pairwise_iou(a, b))
    alone = expected.scores[looked_at & (every < 0)]
    extra = found.scores[np.setdiff1d(np.flatnonzero(found.scores >= np.float32(min_score)), every)]
    moved = float((expected.scores[first] * (1 - overlap)).sum() + score.sum() + alone.sum() + extra.sum())
    image = ImageDiff(
        image_id, int(looked_at.sum()), len(alone), len(extra), float(box_px.max(initial=0)),
        float(score.max(initial=0)), moved,
    )  # fmt: skip
    return _Pairs(image, box_px, score)
