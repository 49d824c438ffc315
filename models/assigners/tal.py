"""Task-aligned assignment: Feng et al., "TOOD: Task-aligned One-stage Object Detection", ICCV 2021, section 3.2.

An object takes the points at which the network itself classifies and locates it best, by their alignment
t = s^alpha * u^beta: s is the score that is predicted for the object's class, u the IoU of the predicted box with the
object. In the order of TOOD's code and YOLOv8's, candidates are the points inside the object.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.assigners.candidates import best_owner, inside
from models.boxes import iou
from models.priors import Priors


class Predictions(NamedTuple):
    """What the network says of B images, and the classes that it is asked about."""

    logits: Tensor  # [B, N, C]
    boxes_xyxy: Tensor  # [B, N, 4] decoded
    gt_labels: Tensor  # [B, G]; any number below 0 where there is no object


@torch.no_grad()
def assign_tal(
    priors: Priors,
    gt_boxes_xyxy: Tensor,
    gt_valid: Tensor,
    topk: int = 13,
    alpha: float = 1.0,
    beta: float = 6.0,
    available: Tensor | None = None,
    *,
    predictions: Predictions,
) -> Tensor:
    """Matched box index per prior, [B, N] int64, for boxes [B, G, 4] with validity [B, G].

    Of the points inside an object, the `topk` of highest alignment over all levels are its positives. A point that
    several objects claim goes to the one that its predicted box overlaps most. A prediction that does not overlap an
    object at all is not aligned with it, and no positive.
    available: which priors can be candidates, bool [B, N]; None: all.
    """
    N = len(priors.strides)
    chosen, claimed, overlaps = [], [], []
    # One image at a time: points x boxes of a whole batch is gigabytes on real images.
    for i, (boxes, valid) in enumerate(zip(gt_boxes_xyxy, gt_valid, strict=True)):
        candidate = inside(priors.points, boxes[:, None]) & valid[:, None]  # [G, N]
        if available is not None:
            candidate &= available[i]
        overlap = iou(boxes[:, None], predictions.boxes_xyxy[i])  # [G, N]
        logits = predictions.logits[i][:, predictions.gt_labels[i].clamp(min=0)].T  # [G, N], of each object's class
        aligned = log_alignment(logits, overlap, alpha, beta).masked_fill(~candidate, -torch.inf)
        best, index = aligned.topk(min(topk, N), dim=1)  # [G, k]
        chosen.append(index)
        claimed.append(best > -torch.inf)
        overlaps.append(overlap.gather(1, index))
    return best_owner(torch.stack(chosen), torch.stack(claimed), torch.stack(overlaps), N)


def log_alignment(logits: Tensor, overlaps: Tensor, alpha: float, beta: float) -> Tensor:
    """ln(s^alpha * u^beta) [...] of class logits [...] and IoUs [...]; -inf where nothing overlaps.

    The logarithm has the order of the alignment itself, and does not become 0 for small scores and overlaps.
    """
    return alpha * F.logsigmoid(logits) + beta * overlaps.log()


def soft_targets(
    logits: Tensor, overlaps: Tensor, owners: Tensor, objects: int, alpha: float = 1.0, beta: float = 6.0
) -> Tensor:
    """The target [P] of the class score at each of P positives: its alignment, on the scale of IoUs.

    Each object's alignments are divided by their maximum and multiplied by the largest IoU of its positives (TOOD,
    equation 4 and the lines before it). So the best positive of an object has the object's largest IoU as its target.
    logits, overlaps: [P], of the object's class and of the predicted box. owners: [P] int64, 0 to objects - 1.
    """
    aligned = log_alignment(logits, overlaps, alpha, beta)
    best = aligned.new_full((objects,), -torch.inf).scatter_reduce(0, owners, aligned, "amax")
    largest = overlaps.new_zeros(objects).scatter_reduce(0, owners, overlaps, "amax")
    return (aligned - best[owners]).exp() * largest[owners]
