"""The training loss of a detector's raw output; `models.deploy.graph` decodes the same output to detections."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from isodet.shapes import assert_shape
from models.assigners import BACKGROUND, IGNORED, assign
from models.boxes import iou
from models.coders import decode, encode_delta
from models.config.model import BoxConfig, LossConfig, ModelConfig
from models.config.network import is_custom
from models.custom.call import custom_box_loss, custom_class_loss
from models.detector import Raw
from models.losses.boxes import centerness
from models.losses.classification import hardest, smoothed
from models.priors import Priors

REGION = -2
"""Label of an ignore region: a box that is neither an object nor background (`assign.ignore_iof`)."""


class Losses(NamedTuple):
    """Weighted scalar terms; each is connected to the network for backward, even without any object."""

    cls: Tensor
    box: Tensor
    quality: Tensor  # 0 where there is no quality branch

    @property
    def total(self) -> Tensor:
        return self.cls + self.box + self.quality


def _own_sum(value: Tensor) -> Tensor:
    """The `total` of a single process."""
    return value


def detection_loss(
    config: ModelConfig,
    raw: Raw,
    priors: Priors,
    gt_boxes_xyxy: Tensor,
    gt_labels: Tensor,
    sizes_hw: Tensor | None = None,
    total: Callable[[Tensor], Tensor] = _own_sum,
    *,
    regions: bool = True,
) -> Losses:
    """Losses of a batch: raw outputs of B images against boxes [B, G, 4] and labels [B, G].

    Labels are 0..C-1, -1 for padding, or `REGION`. sizes_hw: [B, 2], the padded size of each image in pixels, for
    `assign.padding` absent; None: all images have the size of the batch.

    Divisors are mmdetection's. Classification and quality are divided by the sum over images of max(positives, 1), or
    for `center` by max(positives of the batch, 1); GHM's weights contain their divisor. The box loss is divided by the
    sum of its weights: with a centerness branch and `box.weighting` centerness these are the centerness targets,
    otherwise 1 for each positive. With `loss.normalizer` image, each image is divided by its own sum, at least 1, and
    the result is the mean over images.

    total: sums a tensor over the processes that share a batch. Divisors are then those of the shared batch, and its
    loss is the sum of the losses of all processes.

    regions: False where the caller knows that no label is `REGION`, because the check makes the host wait for a GPU.
    """
    B, N, C = raw.logits.shape[0], len(priors.boxes_xyxy), len(config.classes)
    assert_shape("raw.logits", raw.logits, B, N, C)
    assert_shape("raw.boxes", raw.boxes, B, N, 4)
    if raw.quality is not None:
        assert_shape("raw.quality", raw.quality, B, N)
    assert_shape("gt_boxes_xyxy", gt_boxes_xyxy, B, None, 4)
    assert_shape("gt_labels", gt_labels, *gt_boxes_xyxy.shape[:2])
    with torch.no_grad():
        ignored = gt_labels == REGION if regions else None
        matched = assign(config.assign, priors, gt_boxes_xyxy, gt_labels >= 0, ignored, sizes_hw)  # [B, N]
        image, prior = (matched >= 0).nonzero(as_tuple=True)  # [P] each, P = positives of the batch
        target = matched[image, prior]
        target_boxes = gt_boxes_xyxy[image, target]  # [P, 4]
        positives = (matched >= 0).sum(dim=1).to(raw.logits.dtype)  # [B]
        if config.assign.part.counts_over == "image":
            positives = positives.clamp(min=1)
        share = _share(config.loss, positives, total)  # [B]

    codes = raw.boxes[image, prior]  # [P, 4]
    positive_priors = Priors(priors.boxes_xyxy[prior], priors.strides[prior], (len(prior),))
    boxes = decode(config.box, positive_priors, codes)  # [P, 4]
    overlaps = iou(boxes.detach(), target_boxes)  # [P]

    classes = torch.zeros_like(raw.logits)  # [B, N, C] in 0..1
    scores = overlaps if config.loss.part.teaches_iou else torch.ones_like(overlaps)  # [P]
    classes[image, prior, gt_labels[image, target]] = scores
    cls = _classification(config.loss, raw.logits, classes, matched, share, total)

    weight, share_of_boxes = codes.new_ones(len(image)), share
    quality = raw.logits.new_zeros(())
    if config.quality == "centerness":
        central = centerness(positive_priors.points, target_boxes)  # [P]
        quality = (_bce(raw, image, prior, central) * share[image]).sum()
        if config.box.weighting == "centerness":
            least = 1.0 if config.assign.part.counts_over == "image" else 1e-6
            per_prior = torch.zeros_like(raw.logits[..., 0]).index_put((image, prior), central)  # [B, N]
            weight, share_of_boxes = central, _share(config.loss, per_prior.sum(dim=1), total, least)
    elif config.quality == "iou":
        quality = (_bce(raw, image, prior, overlaps) * share[image]).sum()

    per_box = _per_box(config.box, boxes, codes, target_boxes, positive_priors.boxes_xyxy)
    box = config.box.weight * (per_box * weight * share_of_boxes[image]).sum()
    return Losses(cls, box, quality)


def _share(config: LossConfig, amounts: Tensor, total: Callable[[Tensor], Tensor], least: float = 1.0) -> Tensor:
    """The factor of each image's loss [B]: 1 / (sum of the batch's amounts [B]), or 1 / (own amount * B).

    least: amounts below it count as this.
    """
    if config.normalizer == "image":
        return 1 / (amounts.clamp(min=least) * total(amounts.new_tensor(len(amounts))))
    return (1 / total(amounts.sum()).clamp(min=least)).expand(len(amounts))


def _classification(
    config: LossConfig, logits: Tensor, targets: Tensor, matched: Tensor, share: Tensor,
    total: Callable[[Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """The scalar loss of logits [B, N, C] against targets [B, N, C].

    matched: [B, N], as `assign` gives it. share: [B], the factor of each image's loss.
    """
    counted, positive = matched != IGNORED, matched >= 0  # [B, N]
    if config.smoothing:  # targets of background stay as they are
        targets = smoothed(targets, positive[..., None] * config.smoothing)
    if is_custom(config.cls):
        each = custom_class_loss(config, logits, targets)
    else:
        loss: Callable[..., Tensor] = config.part.configured(config)
        if config.part.of_batch:
            return loss(logits, targets, counted[..., None], total=total).sum()
        each = loss(logits, targets)
    if config.hard_negatives:
        per_prior = each.detach().sum(dim=-1)  # [B, N]
        counted = hardest(per_prior, positive, matched == BACKGROUND, config.hard_negatives)
    return (each.masked_fill(~counted[..., None], 0).sum(dim=(1, 2)) * share).sum()


def _per_box(config: BoxConfig, boxes: Tensor, codes: Tensor, target_boxes: Tensor, anchors: Tensor) -> Tensor:
    """Losses [P] of decoded boxes [P, 4], or of their codes [P, 4] relative to anchors [P, 4]."""
    if is_custom(config.loss):
        return custom_box_loss(config, boxes, target_boxes)
    loss: Callable[..., Tensor] = config.part.configured(config)
    if config.part.of == "codes":
        return loss(codes, encode_delta(anchors, target_boxes, config.stds)).sum(dim=-1)
    return loss(boxes, target_boxes)


def _bce(raw: Raw, image: Tensor, prior: Tensor, target: Tensor) -> Tensor:
    assert raw.quality is not None, "a configuration with a quality branch has a quality output"
    return F.binary_cross_entropy_with_logits(raw.quality[image, prior], target, reduction="none")
