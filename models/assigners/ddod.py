"""DDOD: Chen et al., "Disentangle Your Dense Object Detector", ACM Multimedia 2021, section 3.2: classes and boxes have
positives of their own.

Both are assigned as in ATSS, but by what the network predicts at a prior instead of by the prior's own overlap. The two
weigh the predicted class against the predicted box differently (`assign.alpha` and `assign.box_alpha`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.assigners.atss import adaptive_matches
from models.assigners.candidates import nearest
from models.assigners.tal import Predictions
from models.boxes import iou
from models.priors import Priors


@torch.no_grad()
def assign_ddod(
    priors: Priors,
    gt_boxes_xyxy: Tensor,
    gt_valid: Tensor,
    topk: int = 9,
    alpha: float = 0.8,
    available: Tensor | None = None,
    *,
    predictions: Predictions,
) -> Tensor:
    """Matched box index per prior, [B, N] int64, for boxes [B, G, 4] with validity [B, G].

    The candidates of ATSS are compared by s^(1 - alpha) * u^alpha: s is the score that is predicted for the object's
    class, u the IoU of the predicted box with the object (the authors' ATSSCostAssigner). Where no prediction overlaps
    an object, all of its candidates inside it are as good as the threshold, and positive.
    available: which priors can be candidates, bool [B, N]; None: all.
    """
    index, usable = nearest(priors, gt_boxes_xyxy, topk, available)  # [B, G, M], M = candidates of an object
    image = torch.arange(len(index), device=index.device)[:, None, None]
    logits = predictions.logits[image, index, predictions.gt_labels.clamp(min=0)[..., None]]  # [B, G, M]
    overlaps = iou(gt_boxes_xyxy[:, :, None], predictions.boxes_xyxy[image, index])  # [B, G, M]
    fit = logits.sigmoid() ** (1 - alpha) * overlaps**alpha
    return adaptive_matches(priors, gt_boxes_xyxy, gt_valid, index, usable, fit)
