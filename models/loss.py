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
from models.config.model import AssignConfig, BoxConfig, LossConfig, ModelConfig
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
    with `box.weighting` score the predicted class scores, otherwise 1 for each positive. An assigner may choose
    other positives for boxes and their quality than for classes (`AssignConfig.for_boxes`), which are then counted
    apart. With an assigner of soft targets, the targets of classes are alignments (`models.assigners.tal`). They are
    the weights of boxes too, and all losses are divided by their sum, at least 1. With `loss.normalizer` image, each
    image is divided by its own sum, at least 1, and the result is the mean over images.

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
    predictions = None
    if part.needs_predictions:
        with torch.no_grad():
            predictions = Predictions(raw.logits, decode(config.box, priors, raw.boxes), gt_labels)

    def positives(section: AssignConfig) -> _Positives:
        with torch.no_grad():
            ignored = gt_labels == REGION if regions else None
            matched = assign(section, priors, gt_boxes_xyxy, gt_labels >= 0, ignored, sizes_hw, predictions)
        return _positives(config, raw, priors, matched, gt_boxes_xyxy, gt_labels)

    def share_of(matched: Tensor) -> Tensor:
        """The factor of each image's loss [B], by its positives."""
        counts = (matched >= 0).sum(dim=1).to(raw.logits.dtype)  # [B]
        return _share(config.loss, counts.clamp(min=1) if part.counts_over == "image" else counts, total)

    objects = positives(config.assign)
    image, prior = objects.image, objects.prior
    classes = torch.zeros_like(raw.logits)  # [B, N, C] in 0..1
    scores = objects.overlaps if config.loss.part.teaches_iou else torch.ones_like(objects.overlaps)  # [P]
    if part.soft_targets:
        logits, owners = raw.logits.detach()[image, prior, objects.labels], image * gt_labels.shape[1] + objects.target
        alpha, beta = config.assign.alpha, config.assign.beta
        scores = soft_targets(logits, objects.overlaps, owners, gt_labels.numel(), alpha, beta)
        share = _share(config.loss, objects.per_image(scores), total)  # [B]
    else:
        share = share_of(objects.matched)
    classes[image, prior, objects.labels] = scores
    cls = _classification(config.loss, raw.logits, classes, objects.matched, share, total)

    if part.for_boxes:
        objects = positives(config.assign.for_boxes)
        image, prior, share = objects.image, objects.prior, share_of(objects.matched)
    codes, target_boxes = objects.codes, objects.target_boxes
    weight, share_of_boxes = codes.new_ones(len(image)), share
    quality = raw.logits.new_zeros(())
    if part.soft_targets:
        weight = scores
    elif config.box.weighting == "score":
        weight = raw.logits.detach()[image, prior].sigmoid().amax(dim=-1)  # [P]
        share_of_boxes = _share(config.loss, objects.per_image(weight), total)
    if config.quality == "centerness":
        central = centerness(objects.priors.points, target_boxes)  # [P]
        quality = (_bce(raw, image, prior, central) * share[image]).sum()
        if config.box.weighting == "centerness":
            least = 1.0 if part.counts_over == "image" else 1e-6
            weight, share_of_boxes = central, _share(config.loss, objects.per_image(central), total, least)
    elif config.quality == "iou":
        quality = (_bce(raw, image, prior, objects.overlaps) * share[image]).sum()

    per_box = _per_box(config.box, objects.boxes, codes, target_boxes, objects.priors.boxes_xyxy)
    box = config.box.weight * (per_box * weight * share_of_boxes[image]).sum()
    if config.box.code == "dfl":
        distances = encode_ltrb(objects.priors.points, objects.priors.strides, target_boxes)  # [P, 4]
        per_side = distribution_focal_loss(codes.unflatten(-1, (4, config.box.bins)), distances)  # [P, 4]
        box = box + config.box.dfl_weight * (per_side.mean(dim=-1) * weight * share_of_boxes[image]).sum()
    return Losses(cls, box, quality)


class _Positives(NamedTuple):
    """The P priors of a batch that have an object, what the network says there, and what it should say."""

    matched: Tensor  # [B, N], as `assign` gives it
    image: Tensor  # [P]
    prior: Tensor  # [P]
    target: Tensor  # [P], of the image's G objects
    labels: Tensor  # [P]
    target_boxes: Tensor  # [P, 4]
    priors: Priors  # these P
    codes: Tensor  # [P, 4], or [P, 4 * bins]
    boxes: Tensor  # [P, 4]
    overlaps: Tensor  # [P]

    def per_image(self, values: Tensor) -> Tensor:
        """The sums [B] of values [P] of the positives, added up image by image in the order of the priors."""
        places = torch.zeros_like(self.matched, dtype=values.dtype)  # [B, N]
        return places.index_put((self.image, self.prior), values).sum(dim=1)


def _positives(
    config: ModelConfig, raw: Raw, priors: Priors, matched: Tensor, gt_boxes_xyxy: Tensor, gt_labels: Tensor
) -> _Positives:
    image, prior = (matched >= 0).nonzero(as_tuple=True)
    target = matched[image, prior]
    target_boxes = gt_boxes_xyxy[image, target]
    codes = raw.boxes[image, prior]
    positive_priors = Priors(priors.boxes_xyxy[prior], priors.strides[prior], (len(prior),))
    boxes = decode(config.box, positive_priors, codes)
    overlaps, labels = iou(boxes.detach(), target_boxes), gt_labels[image, target]
    return _Positives(matched, image, prior, target, labels, target_boxes, positive_priors, codes, boxes, overlaps)


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
