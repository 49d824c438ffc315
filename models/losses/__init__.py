"""Losses, element by element and in float32 at least; who sums and divides is `models.loss`."""

from models.losses.boxes import (
    balanced_l1_loss,
    centerness,
    ciou_loss,
    diou_loss,
    eiou_loss,
    giou_loss,
    iou_linear_loss,
    iou_log_loss,
    l1_loss,
    smooth_l1_loss,
)
from models.losses.classification import (
    bce_loss,
    focal_loss,
    ghm_weights,
    hardest,
    quality_focal_loss,
    varifocal_loss,
)

__all__ = [
    "balanced_l1_loss",
    "bce_loss",
    "centerness",
    "ciou_loss",
    "diou_loss",
    "eiou_loss",
    "focal_loss",
    "ghm_weights",
    "giou_loss",
    "hardest",
    "iou_linear_loss",
    "iou_log_loss",
    "l1_loss",
    "quality_focal_loss",
    "smooth_l1_loss",
    "varifocal_loss",
]
