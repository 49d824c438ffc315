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

    overlaps = iou(gt_boxes_xyxy[:, :, None], priors.boxes_xyxy[index])  # [B, G, M]
    return adaptive_matches(priors, gt_boxes_xyxy, gt_valid, index, usable, overlaps)


def adaptive_matches(
    priors: Priors, gt_boxes_xyxy: Tensor, gt_valid: Tensor, index: Tensor, usable: Tensor, overlaps: Tensor
) -> Tensor:
    """The rest of the algorithm: matched box index per prior, [B, N] int64.

    index, usable: [B, G, M], the candidates as `nearest` gives them. overlaps: [B, G, M], how good each of them is.
    """
    # Lines 7-10: the threshold adapts to each object. The paper's "standard deviation" is the unbiased one
    # in its authors' code.
    count = usable.sum(dim=-1, keepdim=True)
    mean = overlaps.masked_fill(~usable, 0).sum(dim=-1, keepdim=True) / count.clamp(min=1)
    squared = (overlaps - mean).square().masked_fill(~usable, 0).sum(dim=-1, keepdim=True)
    threshold = mean + (squared / (count - 1).clamp(min=1)).sqrt()

    # Lines 11-15: positives reach the threshold with their center inside the object.
    held = inside(priors.points[index], gt_boxes_xyxy[:, :, None])
    positive = usable & (overlaps >= threshold) & held & gt_valid[..., None]
    return best_owner(index, positive, overlaps, len(priors.boxes_xyxy))
