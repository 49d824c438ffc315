"""ATSS: Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive
Training Sample Selection", CVPR 2020, algorithm 1.

Each object takes as positives the priors, among the few nearest to its center on each level, whose IoU with
it is at least mean + standard deviation of those candidates' IoUs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.assigners.candidates import best_owner, inside, nearest
from models.boxes import iou
from models.priors import Priors


@torch.no_grad()
def assign_atss(
    priors: Priors, gt_boxes_xyxy: Tensor, gt_valid: Tensor, topk: int = 9, available: Tensor | None = None
) -> Tensor:
    """Matched box index per prior, [B, N] int64, for boxes [B, G, 4] with validity [B, G].

    available: which priors can be candidates, bool [B, N]; None: all.
    IoU is computed for candidates only, at most `topk * L` per object, and candidates are searched among `topk**2`
    cells of a level, so no tensor grows with N times G.
    """
    # Lines 3-6: on each level, the `topk` priors whose centers are nearest to the object's.
    index, usable = nearest(priors, gt_boxes_xyxy, topk, available)  # [B, G, M], M = candidates of an object

    # Lines 7-10: the threshold adapts to each object. The paper's "standard deviation" is the unbiased one
    # in its authors' code.
    boxes = gt_boxes_xyxy[:, :, None]  # [B, G, 1, 4]
    overlaps = iou(boxes, priors.boxes_xyxy[index])  # [B, G, M]
    count = usable.sum(dim=-1, keepdim=True)
    mean = overlaps.masked_fill(~usable, 0).sum(dim=-1, keepdim=True) / count.clamp(min=1)
    squared = (overlaps - mean).square().masked_fill(~usable, 0).sum(dim=-1, keepdim=True)
    threshold = mean + (squared / (count - 1).clamp(min=1)).sqrt()

    # Lines 11-15: positives reach the threshold with their center inside the object.
    positive = usable & (overlaps >= threshold) & inside(priors.points[index], boxes) & gt_valid[..., None]
    return best_owner(index, positive, overlaps, len(priors.boxes_xyxy))
