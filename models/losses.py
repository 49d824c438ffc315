"""Losses, element by element in float32; who sums and divides is `models.criterion`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.boxes import box_area, intersection


def focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss of logits [...] against 0/1 targets [...], per element (RetinaNet, equation 5)."""
    p = logits.sigmoid()
    wrong = p * (1 - targets) + (1 - p) * targets  # 1 - p_t
    alpha_t = alpha * targets + (1 - alpha) * (1 - targets)
    return alpha_t * wrong**gamma * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def giou_loss(pred_xyxy: Tensor, target_xyxy: Tensor, eps: float = 1e-7) -> Tensor:
    """1 - GIoU [...] of paired boxes [..., 4] (Rezatofighi et al., CVPR 2019), in 0..2."""
    overlap = intersection(pred_xyxy, target_xyxy)
    union = (box_area(pred_xyxy) + box_area(target_xyxy) - overlap).clamp(min=eps)
    hull_min = torch.minimum(pred_xyxy[..., :2], target_xyxy[..., :2])
    hull_max = torch.maximum(pred_xyxy[..., 2:], target_xyxy[..., 2:])
    hull = (hull_max - hull_min).clamp(min=0).prod(dim=-1).clamp(min=eps)
    return 1 - (overlap / union - (hull - union) / hull)


def centerness(points_xy: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """How central points [..., 2] are in their boxes [..., 4]: 1 in the middle, 0 on the border or outside.

    FCOS, equation 3: sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)).
    """
    left, top = (points_xy - boxes_xyxy[..., :2]).unbind(-1)
    right, bottom = (boxes_xyxy[..., 2:] - points_xy).unbind(-1)
    across = torch.minimum(left, right).clamp(min=0) / torch.maximum(left, right).clamp(min=1e-6)
    down = torch.minimum(top, bottom).clamp(min=0) / torch.maximum(top, bottom).clamp(min=1e-6)
    return (across * down).sqrt()
