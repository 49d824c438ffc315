"""Differences between two detectors' detections: pairs of the same object, and objects that only one detected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.detections import Detections
from runtime.evaluation.matching import IOU, pairwise_iou

MIN_SCORE = 0.1
"""Default score below which detections are not compared, because they come and go with rounding."""


@dataclass(frozen=True)
class DetectionDiff:
    """Reference detections of at least a score, each paired with the other detector's best box of the same class.

    boxes: reference detections that were compared. unmatched: those without a box of the same class at IoU 0.5 or more.
    box_mean_px, box_max_px: over pairs, the largest coordinate difference in source pixels. score_mean, score_max: over
    pairs, the difference of scores. extra: the other detector's detections of at least the score that are no pair of
    any reference detection, whatever its score.
    """

    boxes: int
    unmatched: int
    box_mean_px: float
    box_max_px: float
    score_mean: float
    score_max: float
    extra: int = 0


@dataclass(frozen=True)
class ImageDiff:
    """`DetectionDiff` of one image.

    moved: the change, counted in objects: for every pair the reference's score times 1 - IoU and the difference of
    scores, and for every detection that only one of the two has, its score.
    """

    image_id: int
    boxes: int
    unmatched: int
    extra: int
    box_max_px: float
    score_max: float
    moved: float


@dataclass(frozen=True, eq=False)
class _Pairs:
    """The pairs of one image: the differences of boxes and scores of each, and their summary."""

    diff: ImageDiff
    box_px: NDArray[np.float64]
    score: NDArray[np.float64]


def compare_detections(
    reference: Mapping[int, Detections], other: Mapping[int, Detections], min_score: float = MIN_SCORE
) -> DetectionDiff:
    """Pair the detections of two detectors image by image, in order of score, each box in one pair at most."""
    images = [_of_image(image_id, expected, other[image_id], min_score) for image_id, expected in reference.items()]
    boxes, scores = (np.concatenate([getattr(i, name) for i in images] or [[]]) for name in ("box_px", "score"))
    counts = [sum(getattr(i.diff, name) for i in images) for name in ("boxes", "unmatched", "extra")]
    if len(boxes) == 0:
        return DetectionDiff(counts[0], counts[1], 0.0, 0.0, 0.0, 0.0, counts[2])
    box_mean, box_max, score_mean, score_max = map(float, (boxes.mean(), boxes.max(), scores.mean(), scores.max()))
    return DetectionDiff(counts[0], counts[1], box_mean, box_max, score_mean, score_max, counts[2])


def compare_by_image(
    reference: Mapping[int, Detections], other: Mapping[int, Detections], min_score: float = MIN_SCORE
) -> tuple[ImageDiff, ...]:
    """The differences of every image, the one that moved most first."""
    images = [_of_image(i, expected, other[i], min_score).diff for i, expected in reference.items()]
    return tuple(sorted(images, key=lambda image: -image.moved))


def partners(reference: Detections, other: Detections) -> NDArray[np.int64]:
    """[D] for each of `reference`, in order of score, the index of its pair in `other`, or -1."""
    overlaps = pairwise_iou(reference.boxes_xyxy, other.boxes_xyxy)
    overlaps[reference.labels[:, None] != other.labels[None]] = 0
    indices = np.full(len(reference), -1, np.int64)
    for i in np.flatnonzero((overlaps >= IOU).any(axis=1)):
        j = int(overlaps[i].argmax())
        if overlaps[i, j] >= IOU:
            indices[i] = j
            overlaps[:, j] = 0
    return indices


def _of_image(image_id: int, reference: Detections, other: Detections, min_score: float) -> _Pairs:
    indices = partners(reference, other)
    compared = reference.scores >= np.float32(min_score)
    first = np.flatnonzero(compared & (indices >= 0))
    second = indices[first]
    a, b = reference.boxes_xyxy[first], other.boxes_xyxy[second]
    box_px = np.abs(a - b).astype(np.float64).max(axis=1, initial=0)
    score = np.abs(reference.scores[first].astype(np.float64) - other.scores[second])
    overlap = np.diagonal(pairwise_iou(a, b))
    lost = reference.scores[compared & (indices < 0)]
    extra = other.scores[np.setdiff1d(np.flatnonzero(other.scores >= np.float32(min_score)), indices)]
    moved = float((reference.scores[first] * (1 - overlap)).sum() + score.sum() + lost.sum() + extra.sum())
    box_max, score_max = float(box_px.max(initial=0)), float(score.max(initial=0))
    image = ImageDiff(image_id, int(compared.sum()), len(lost), len(extra), box_max, score_max, moved)
    return _Pairs(image, box_px, score)
