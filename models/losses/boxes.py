"""Losses of boxes: overlap losses compare boxes in pixels, distance losses compare codes.

Overlap losses take xyxy boxes [..., 4] and give [...]; distance losses give one value per code. Every value and
gradient is finite, also for boxes that have no area, are identical, touch, are disjoint, or are up to 1e8 px large. A
prediction without overlap has a gradient in all overlap losses but `iou_log_loss` and `iou_linear_loss`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.boxes import box_area, intersection, iou
from models.losses.precision import wide

_EPS = 1e-7  # square pixels; as in mmdetection and torchvision


def iou_log_loss(pred_xyxy: Tensor, target_xyxy: Tensor, eps: float = 1e-6) -> Tensor:
    """-ln(IoU) [...] of paired boxes (UnitBox, Yu et al., 2016), at most -ln(eps)."""
    return -iou(wide(pred_xyxy), wide(target_xyxy)).clamp(min=eps).log()


def iou_linear_loss(pred_xyxy: Tensor, target_xyxy: Tensor) -> Tensor:
    """1 - IoU [...] of paired boxes."""
    return 1 - iou(wide(pred_xyxy), wide(target_xyxy))


def giou_loss(pred_xyxy: Tensor, target_xyxy: Tensor, eps: float = _EPS) -> Tensor:
    """1 - GIoU [...] of paired boxes [..., 4] (Rezatofighi et al., CVPR 2019), in 0..2."""
    pred_xyxy, target_xyxy = wide(pred_xyxy), wide(target_xyxy)
    overlap = intersection(pred_xyxy, target_xyxy)
    union = (box_area(pred_xyxy) + box_area(target_xyxy) - overlap).clamp(min=eps)
    hull = _hull_wh(pred_xyxy, target_xyxy).prod(dim=-1).clamp(min=eps)
    return 1 - (overlap / union - (hull - union) / hull)


def diou_loss(pred_xyxy: Tensor, target_xyxy: Tensor) -> Tensor:
    """1 - IoU + d^2 / c^2 [...] (Zheng et al., AAAI 2020, equation 7): d between centers, c the hull's diagonal."""
    pred_xyxy, target_xyxy = wide(pred_xyxy), wide(target_xyxy)
    return 1 - iou(pred_xyxy, target_xyxy, _EPS) + _center_distance(pred_xyxy, target_xyxy)


def ciou_loss(pred_xyxy: Tensor, target_xyxy: Tensor) -> Tensor:
    """DIoU + alpha * v [...] (Zheng et al., AAAI 2020, equations 8 to 11), v the difference of aspect ratios.

    alpha = v / (1 - IoU + v) has no gradient, as in the paper. This is torchvision's form. mmdetection's takes
    alpha as 0 where IoU <= 0.5 (the authors' later code), clamps the whole to -1..1, and is NaN for identical
    boxes, where alpha is 0 / 0.
    """
    pred_xyxy, target_xyxy = wide(pred_xyxy), wide(target_xyxy)
    overlap = iou(pred_xyxy, target_xyxy, _EPS)
    v = 4 / math.pi**2 * (_aspect(target_xyxy) - _aspect(pred_xyxy)) ** 2
    with torch.no_grad():
        alpha = v / (1 - overlap + v + _EPS)
    return 1 - overlap + _center_distance(pred_xyxy, target_xyxy) + alpha * v


def eiou_loss(pred_xyxy: Tensor, target_xyxy: Tensor) -> Tensor:
    """1 - IoU + d^2 / c^2 + dw^2 / Cw^2 + dh^2 / Ch^2 [...] (Zhang et al., Focal and Efficient IoU Loss, 2021).

    d and c as in DIoU, dw and dh the differences of the sides, Cw and Ch the hull's. What mmdetection calls EIoU
    is another loss (Extended IoU).
    """
    pred_xyxy, target_xyxy = wide(pred_xyxy), wide(target_xyxy)
    sides = (pred_xyxy[..., 2:] - pred_xyxy[..., :2]) - (target_xyxy[..., 2:] - target_xyxy[..., :2])
    apart = (sides**2 / (_hull_wh(pred_xyxy, target_xyxy) ** 2 + _EPS)).sum(dim=-1)
    return 1 - iou(pred_xyxy, target_xyxy, _EPS) + _center_distance(pred_xyxy, target_xyxy) + apart


def alpha_diou_loss(pred_xyxy: Tensor, target_xyxy: Tensor, alpha: float = 3.0) -> Tensor:
    """1 - IoU^alpha + (d^2 / c^2)^alpha [...] (He et al., Alpha-IoU, NeurIPS 2021, alpha = 3), d and c as in DIoU.

    Above an IoU of 0.58 its slope is steeper than DIoU's, which makes nearly right boxes more exact.
    """
    pred_xyxy, target_xyxy = wide(pred_xyxy), wide(target_xyxy)
    return 1 - iou(pred_xyxy, target_xyxy, _EPS) ** alpha + _center_distance(pred_xyxy, target_xyxy) ** alpha


def _hull_wh(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Sides [..., 2] of the smallest box around both."""
    low, high = torch.minimum(a_xyxy[..., :2], b_xyxy[..., :2]), torch.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    return (high - low).clamp(min=0)


def _center_distance(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Squared distance of centers over the hull's squared diagonal, [...] in 0..1."""
    apart = (a_xyxy[..., :2] + a_xyxy[..., 2:] - b_xyxy[..., :2] - b_xyxy[..., 2:]) / 2
    return (apart**2).sum(dim=-1) / ((_hull_wh(a_xyxy, b_xyxy) ** 2).sum(dim=-1) + _EPS)


def _aspect(boxes_xyxy: Tensor) -> Tensor:
    """arctan(width / height) [...]; heights below 0.001 px are taken as 0.001, which bounds the slope."""
    width, height = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).unbind(-1)
    return torch.atan(width / height.clamp(min=1e-3))


def l1_loss(pred: Tensor, target: Tensor) -> Tensor:
    """|x| of codes [..., 4], x = pred - target."""
    return (wide(pred) - wide(target)).abs()


def smooth_l1_loss(pred: Tensor, target: Tensor, beta: float = 1.0) -> Tensor:
    """x^2 / (2 beta) below |x| = beta, |x| - beta / 2 above (Fast R-CNN, equation 3, where beta is 1)."""
    distance = l1_loss(pred, target)
    return torch.where(distance < beta, distance**2 / (2 * beta), distance - beta / 2)


def balanced_l1_loss(pred: Tensor, target: Tensor, beta: float = 1.0, alpha: float = 0.5, gamma: float = 1.5) -> Tensor:
    """Libra R-CNN (Pang et al., CVPR 2019), equations 8 to 10, on x / beta, times beta.

    The slope is alpha ln(b |x| / beta + 1) below |x| = beta and gamma above, b chosen so that both are equal there. The
    paper has beta = 1; for other values mmdetection scales only a part of the formula, and its slope jumps at beta.
    """
    distance = l1_loss(pred, target) / beta
    b = math.expm1(gamma / alpha)
    inner = distance.clamp(max=1)  # keeps the branch that `where` drops finite, else its gradient would be NaN
    curve = alpha / b * (b * inner + 1) * torch.log1p(b * inner) - alpha * inner
    return beta * torch.where(distance < 1, curve, gamma * distance + gamma / b - alpha)


def centerness(points_xy: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """How central points [..., 2] are in their boxes [..., 4]: 1 in the middle, 0 on the border or outside.

    FCOS, equation 3: sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)).
    """
    left, top = (points_xy - boxes_xyxy[..., :2]).unbind(-1)
    right, bottom = (boxes_xyxy[..., 2:] - points_xy).unbind(-1)
    across = torch.minimum(left, right).clamp(min=0) / torch.maximum(left, right).clamp(min=1e-6)
    down = torch.minimum(top, bottom).clamp(min=0) / torch.maximum(top, bottom).clamp(min=1e-6)
    return (across * down).sqrt()
