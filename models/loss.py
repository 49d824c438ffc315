"""The training loss of a detector's raw output; `models.deploy.graph` decodes the same output to detections."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from isodet.shapes import assert_shape
from models.assigners import BACKGROUND, IGNORED, assign
from models.assigners.tal import Predictions, soft_targets
from models.boxes import iou
from models.coders import decode, encode_delta, encode_ltrb
from models.config.model import BoxConfig, LossConfig, ModelConfig
from models.config.network import is_custom
from models.custom.call import custom_box_loss, custom_class_loss
from models.detector import Raw
from models.losses.boxes import centerness
from models.losses.classification import hardest, joint_logits, smoothed
from models.losses.distribution import distribution_focal_loss
from models.priors import Priors

REGION = -2
"""Label of an ignore region: a box that is neither an object nor background (`assign.ignore_iof`)."""


class Losses(NamedTuple):
    """Weighted scalar terms; each is connected to the network for backward, even without any object."""

    cls: Tensor
    box: Tensor  # with `box.code` dfl, the loss of distributions too
    quality: Tensor  # 0 where there is no quality branch, or one that is learned with the classes

    @property
    def total(self) -> Tensor:
        return self.cls + self.box + self.quality


def _own_sum(value: Tensor) -> Tensor:
    """The `total` of a single process."""
    return value


def score_logits(config: ModelConfig, raw: Raw) -> Tensor:
    """The logits [B, N, C] whose sigmoid is what `config.loss` teaches.

    With `quality: distribution` it is the product of class probability and quality, otherwise the class probability.
    """
    if config.quality != "distribution":
        return raw.logits
    assert raw.quality is not None, "a configuration with a quality branch has a quality output"
    return joint_logits(raw.logits, raw.quality[..., None])


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
    with `box.weighting` score the predicted class scores, otherwise 1 for each positive. With an assigner that needs
    predictions, the targets of classes are alignments (`models.assigners.tal.soft_targets`). They are the weights of
    boxes too, and all losses are divided by their sum, at least 1. With `loss.normalizer` image, each image is divided
    by its own sum, at least 1, and the result is the mean over images.

    total: sums a tensor over the processes that share a batch. Divisors are then those of the shared batch, and its
    loss is the sum of the losses of all processes.

    regions: False where the caller knows that no label is `REGION`, because the check makes the host wait for a GPU.
    """
    part = config.assign.part
    B, N, C = raw.logits.shape[0], len(priors.boxes_xyxy), len(config.classes)
    assert_shape("raw.logits", raw.logits, B, N, C)
    assert_shape("raw.boxes", raw.boxes, B, N, config.box.channels)
    if raw.quality is not None:
        assert_shape("raw.quality", raw.quality, B, N)
    assert_shape("gt_boxes_xyxy", gt_boxes_xyxy, B, None, 4)
    assert_shape("gt_labels", gt_labels, *gt_boxes_xyxy.shape[:2])
    raw = raw._replace(logits=score_logits(config, raw))
    with torch.no_grad():
        ignored = gt_labels == REGION if regions else None
        predictions = None
        if part.needs_predictions:
            predictions = Predictions(raw.logits, decode(config.box, priors, raw.boxes), gt_labels)
        matched = assign(config.assign, priors, gt_boxes_xyxy, gt_labels >= 0, ignored, sizes_hw, predictions)  # [B, N]
        image, prior = (matched >= 0).nonzero(as_tuple=True)  # [P] each, P = positives of the batch
        target = matched[image, prior]
        target_boxes = gt_boxes_xyxy[image, target]  # [P, 4]
        labels = gt_labels[image, target]

    codes = raw.boxes[image, prior]  # [P, 4], or [P, 4 * bins]
    positive_priors = Priors(priors.boxes_xyxy[prior], priors.strides[prior], (len(prior),))
    boxes = decode(config.box, positive_priors, codes)  # [P, 4]
    overlaps = iou(boxes.detach(), target_boxes)  # [P]

    def per_image(values: Tensor) -> Tensor:
        """The sums [B] of values [P] of the positives, added up image by image in the order of the priors."""
        return torch.zeros_like(raw.logits[..., 0]).index_put((image, prior), values).sum(dim=1)

    classes = torch.zeros_like(raw.logits)  # [B, N, C] in 0..1
    scores = overlaps if config.loss.part.teaches_iou else torch.ones_like(overlaps)  # [P]
    if part.needs_predictions:
        logits, owners = raw.logits.detach()[image, prior, labels], image * gt_labels.shape[1] + target
        scores = soft_targets(logits, overlaps, owners, gt_labels.numel(), config.assign.alpha, config.assign.beta)
        share = _share(config.loss, per_image(scores), total)  # [B]
    else:
        positives = (matched >= 0).sum(dim=1).to(raw.logits.dtype)  # [B]
        share = _share(config.loss, positives.clamp(min=1) if part.counts_over == "image" else positives, total)
    classes[image, prior, labels] = scores
    cls = _classification(config.loss, raw.logits, classes, matched, share, total)

    weight, share_of_boxes = codes.new_ones(len(image)), share
    quality = raw.logits.new_zeros(())
    if part.needs_predictions:
        weight = scores
    elif config.box.weighting == "score":
        weight = raw.logits.detach()[image, prior].sigmoid().amax(dim=-1)  # [P]
        share_of_boxes = _share(config.loss, per_image(weight), total)
    if config.quality == "centerness":
        central = centerness(positive_priors.points, target_boxes)  # [P]
        quality = (_bce(raw, image, prior, central) * share[image]).sum()
        if config.box.weighting == "centerness":
            least = 1.0 if part.counts_over == "image" else 1e-6
            weight, share_of_boxes = central, _share(config.loss, per_image(central), total, least)
    elif config.quality == "iou":
        quality = (_bce(raw, image, prior, overlaps) * share[image]).sum()

    per_box = _per_box(config.box, boxes, codes, target_boxes, positive_priors.boxes_xyxy)
    box = config.box.weight * (per_box * weight * share_of_boxes[image]).sum()
    if config.box.code == "dfl":
        distances = encode_ltrb(positive_priors.points, positive_priors.strides, target_boxes)  # [P, 4]
        per_side = distribution_focal_loss(codes.unflatten(-1, (4, config.box.bins)), distances)  # [P, 4]
        box = box + config.box.dfl_weight * (per_side.mean(dim=-1) * weight * share_of_boxes[image]).sum()
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
