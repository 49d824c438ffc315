"""The ablation of ATSS without its threshold: every candidate inside the object is a positive.

Zhang et al., CVPR 2020: lines 3-6 of algorithm 1 and the center test of line 12, without lines 7-10. Section 4.2 calls
this the lite version of ATSS, used instead of FCOS' center sampling. (The branch `TOPK` in the authors' code is
another rule: the k anchors with the highest IoU over all levels.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.assigners.candidates import best_owner, inside, nearest
from models.boxes import iou
from models.priors import Priors


@torch.no_grad()
def assign_topk(
    priors: Priors, gt_boxes_xyxy: Tensor, gt_valid: Tensor, topk: int = 9, available: Tensor | None = None
) -> Tensor:
    """Matched box index per prior, [B, N] int64, for boxes [B, G, 4] with validity [B, G].

    The `topk` points of each level nearest to an object's center are its positives where they lie inside it.
    A point that several objects claim goes to the one it overlaps most, as in ATSS.
    available: which priors can be candidates, bool [B, N]; None: all.
    """
    index, usable = nearest(priors, gt_boxes_xyxy, topk, available)  # [B, G, M]
    boxes = gt_boxes_xyxy[:, :, None]
    positive = usable & inside(priors.points[index], boxes) & gt_valid[..., None]
    return best_owner(index, positive, iou(boxes, priors.boxes_xyxy[index]), len(priors.boxes_xyxy))
