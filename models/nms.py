"""Non-maximum suppression from standard tensor operators with fixed shapes: what every backend can build."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.boxes import box_area, intersection


def portable_nms(boxes_xyxy: Tensor, labels: Tensor, iou_threshold: float, rounds: int = 16) -> Tensor:
    """Which candidates greedy class-aware NMS keeps, [B, K] bool; candidates are sorted by falling score.

    boxes_xyxy [B, K, 4], labels [B, K]. A candidate falls if a better one of its class that itself stands
    overlaps it by more than `iou_threshold`. Starting from "all stand" and applying that rule to all at once,
    candidate i is final after as many rounds as its chain of suppressors is long; the fixed point is exactly
    the sequential greedy result ("cluster NMS", Zheng et al., 2021). Chains on real candidates are a few links
    long (at most 11 among thousands of random sets); one longer than `rounds` would leave boxes too many,
    never too few, because `rounds` is even.
    """
    if rounds < 2 or rounds % 2:
        raise ValueError(f"rounds: expected an even number, at least 2, got {rounds}")
    a, b = boxes_xyxy[:, :, None], boxes_xyxy[:, None]  # i suppresses j: [B, K, 1, 4], [B, 1, K, 4]
    overlap = intersection(a, b)
    area = box_area(boxes_xyxy)
    # No guard against 0 / 0: NaN > threshold is false, and a box of no area suppresses nothing.
    iou = overlap / (area[:, :, None] + area[:, None] - overlap)
    same = labels[:, :, None] == labels[:, None]
    suppresses = ((iou > _float32_below(iou_threshold)) & same).float().triu(diagonal=1)  # [B, K, K]
    stands = torch.ones_like(suppresses[:, :1])  # [B, 1, K]
    for _ in range(rounds):
        stands = (torch.matmul(stands, suppresses) < 0.5).float()
    return stands[:, 0] > 0.5


def _float32_below(threshold: float) -> float:
    """The largest float32 not above `threshold`, so that comparing float32 IoUs with it is comparing exactly."""
    rounded = np.float32(threshold)
    return float(rounded if float(rounded) <= threshold else np.nextafter(rounded, np.float32(-np.inf)))
