"""Boxes on the edge of a threshold: where rounding alone decides whether they are kept.

Two executions of one network agree to `BOX_PX` and `SCORE`. A box that one of them keeps and the other does not is no
difference between them where so little moves it over an edge, which is computed here, box by box, and never assumed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime import Card, Detections

BOX_PX, SCORE = 0.05, 1e-3


def found(*rows: tuple[float, ...]) -> Detections:
    """Detections of the classes a and b from rows x1, y1, x2, y2, score, label."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4].copy(), table[:, 4].copy(), table[:, 5].astype(np.int32), ("a", "b"))


def unexplained(kept: Detections, other: Detections, card: Card) -> list[int]:
    """Indices of detections of `kept` that `other` lacks, and that lie on no edge."""
    return [i for i in range(len(kept)) if not _is_there(kept, i, other) and not _on_an_edge(kept, i, other, card)]


def _is_there(kept: Detections, i: int, other: Detections) -> bool:
    apart = np.abs(other.boxes_xyxy - kept.boxes_xyxy[i]).max(1, initial=0)
    near = (apart < BOX_PX) & (np.abs(other.scores - kept.scores[i]) < SCORE)
    return bool((near & (other.labels == kept.labels[i])).any())


def _on_an_edge(kept: Detections, i: int, other: Detections, card: Card) -> bool:
    score, nms = kept.scores[i], card.nms
    if score < card.score_threshold + SCORE or (len(other) == nms["detections"] and score < other.scores.min() + SCORE):
        return True
    above = other.boxes_xyxy[(other.labels == kept.labels[i]) & (other.scores > score - SCORE)]
    return any(_may_overlap(kept.boxes_xyxy[i], box, nms["iou"]) for box in above)


def _may_overlap(a: NDArray[np.float32], b: NDArray[np.float32], iou: float) -> bool:
    """Whether boxes [4] may overlap by `iou` where each of their sides lies up to `BOX_PX` elsewhere."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]) + 2 * BOX_PX
    inside = np.clip(sides, 0, None).prod()
    area = sum(np.clip(box[2:] - box[:2] - 2 * BOX_PX, 0, None).prod() for box in (a, b))
    return bool(inside >= iou * (area - inside))
