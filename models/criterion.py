"""The training loss: one of the two readers of a detector's raw output (the other is `models.deploy`)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.assigners import IGNORED, assign
from models.boxes import iou
from models.coders import decode, encode_delta
from models.config import ModelConfig
from models.detector import Raw
from models.losses import centerness, focal_loss, giou_loss
from models.points import Priors


class Losses(NamedTuple):
    """Weighted scalar terms, each with a graph even when there is nothing to find."""

    cls: Tensor
    box: Tensor
    quality: Tensor  # 0 where there is no quality branch

    @property
    def total(self) -> Tensor:
        return self.cls + self.box + self.quality


def criterion(config: ModelConfig, raw: Raw, priors: Priors, gt_boxes_xyxy: Tensor, gt_labels: Tensor) -> Losses:
    """Losses of a batch: raw outputs of B images against boxes [B, G, 4] and labels [B, G], -1 = padding.

    Divisors are mmdetection's. Classification and quality: the sum over images of max(positives, 1), or for
    `center` max(positives of the batch, 1). Box: the sum of its weights, which are the centerness targets
    where there is a centerness branch, otherwise the positives.
    """
    with torch.no_grad():
        matched = assign(config.assign, priors, gt_boxes_xyxy, gt_labels >= 0)  # [B, N]
        image, prior = (matched >= 0).nonzero(as_tuple=True)  # [P] each, P = positives of the batch
        target = matched[image, prior]
        target_boxes = gt_boxes_xyxy[image, target]  # [P, 4]
        if config.assign.kind == "center":
            positives = raw.logits.new_tensor(max(len(image), 1))
        else:
            positives = (matched >= 0).sum(dim=1).clamp(min=1).sum()

        classes = torch.zeros_like(raw.logits)  # [B, N, C] of 0 and 1
        classes[image, prior, gt_labels[image, target]] = 1

    cls = focal_loss(raw.logits, classes).masked_fill((matched == IGNORED)[..., None], 0).sum() / positives

    codes = raw.boxes[image, prior]  # [P, 4]
    mine = Priors(priors.boxes_xyxy[prior], priors.strides[prior], (len(prior),))
    boxes = decode(config.box, mine, codes)  # [P, 4]
    weight, divisor = codes.new_ones(len(image)), positives
    quality = raw.logits.new_zeros(())
    if config.quality == "centerness":
        weight = centerness(mine.points, target_boxes)
        divisor = weight.sum().clamp(min=1e-6 if config.assign.kind == "center" else 1.0)
        quality = _bce(raw, image, prior, weight) / positives
    elif config.quality == "iou":
        quality = _bce(raw, image, prior, iou(boxes.detach(), target_boxes)) / positives

    if config.box.loss == "giou":
        per_box = giou_loss(boxes, target_boxes)
    else:
        per_box = (codes - encode_delta(mine.boxes_xyxy, target_boxes, config.box.stds)).abs().sum(dim=-1)
    box = config.box.weight * (per_box * weight).sum() / divisor
    return Losses(cls, box, quality)


def _bce(raw: Raw, image: Tensor, prior: Tensor, target: Tensor) -> Tensor:
    assert raw.quality is not None, "a configuration with a quality branch has a quality output"
    return F.binary_cross_entropy_with_logits(raw.quality[image, prior], target, reduction="sum")
