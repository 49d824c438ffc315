"""How far two detectors' boxes are apart: pairs of the same object, and what only one of them found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from runtime.detections import Detections


@dataclass(frozen=True)
class Drift:
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


def drift(reference: Mapping[int, Detections], other: Mapping[int, Detections], min_score: float = 0.1) -> Drift:
    """Pair the detections of two detectors image by image, in order of score, each box used once."""
    boxes, scores, total = [], [], 0
    for image_id, expected in reference.items():
        found = other[image_id]
        free = np.ones(len(found), dtype=bool)
        expected = expected.filter(threshold=min_score)
        total += len(expected)
        for box, score, label in zip(expected.boxes_xyxy, expected.scores, expected.labels, strict=True):
            overlaps = np.where(free & (found.labels == label), _iou(box, found.boxes_xyxy), 0)
            if len(overlaps) and overlaps.max() >= 0.5:
                i = int(overlaps.argmax())
                free[i] = False
                boxes.append(float(np.abs(found.boxes_xyxy[i] - box).max()))
                scores.append(abs(float(found.scores[i]) - float(score)))
    pairs = len(boxes)
    return Drift(
        total, total - pairs,
        float(np.mean(boxes)) if pairs else 0.0, max(boxes, default=0.0),
        float(np.mean(scores)) if pairs else 0.0, max(scores, default=0.0),
    )  # fmt: skip


def _iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU [D] of one box [4] with boxes [D, 4]."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    overlap = sides.clip(min=0).prod(axis=1)
    areas = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return overlap / np.maximum(areas - overlap, 1e-9)
