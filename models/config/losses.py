"""The configuration of what is learned: which priors are assigned to which object, how a box is coded, the losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from isodet.strict import ConfigError, CustomName, require, require_defaults
from models.config.choices import (
    ASSIGNERS,
    BOX_LOSSES,
    CLASS_LOSSES,
    AssignerName,
    AssignerPart,
    BoxLossName,
    BoxLossPart,
    ClassLossName,
    ClassLossPart,
    either,
)
from models.config.network import IN_ARGUMENTS, is_custom, require_custom


@dataclass(frozen=True)
class AssignConfig:
    """Which priors answer for which object (docs/architecture.md).

    kind: The rule: the paper's adaptive threshold (atss), IoU thresholds (iou), points near the center (center), the
        nearest points (topk), the points whose own predictions are best (tal), atss by predictions, with positives of
        their own for classes and for boxes (ddod), or your own assigner.
    arguments: Arguments of your own assigner.
    topk: atss, ddod: candidates per level and object. topk: the same, and all that lie inside the object are positive.
        tal: positives per object, over all levels; 13 unless set.
    pos_iou: iou: an anchor of at least this IoU is the object's. What lies between the two thresholds is ignored.
    neg_iou: iou: an anchor below this IoU is background.
    rescue: iou: who gets the anchors that overlap an object most: that object, whatever else they overlap (overwrite,
        mmdetection), or the object that they overlap most themselves (restore, torchvision).
    alpha: tal: exponent of the predicted class score in a prediction's alignment with an object, score^alpha *
        IoU^beta. ddod: the weight of the IoU where the positives of classes are chosen, by score^(1 - alpha) *
        IoU^alpha; 0.8 unless set.
    beta: tal: exponent of the predicted box's IoU in it.
    box_alpha: ddod: the same where the positives of boxes, and of a quality branch, are chosen.
    radius: center: half the side of the sampling square around an object's center, in strides; 0 is the whole box.
    range_factor: center: a level of stride s takes the objects whose farthest side lies within [f/2 * s, f * s], f this
        factor.
    range_ends: center: whether the two ends of that range belong to it (inclusive, the authors' code) or not (strict,
        torchvision).
    padding: Priors beyond an image's own padded size, in a batch with larger images: background like any other, or
        absent from candidates and losses (mmdetection's anchor heads).
    ignore_iof: A prior with more than this share of its area in an ignore region (COCO's crowds) teaches no background;
        center, topk and tal ask whether the point lies inside. null: regions are background (torchvision, mmdetection
        as it ships).
    ignore_over: What gives way to an ignore region: background only, so that an object in a crowd keeps its priors; or
        objects too, which then cannot use those priors (mmdetection's `ignore_iof_thr`).
    """

    kind: AssignerName | CustomName = "atss"
    arguments: Mapping[str, Any] | None = field(default=None, hash=False)
    topk: int = 9
    pos_iou: float = 0.5
    neg_iou: float = 0.4
    rescue: Literal["overwrite", "restore"] = "overwrite"
    alpha: float = 1.0
    beta: float = 6.0
    box_alpha: float = 0.5
    radius: float = 1.5
    range_factor: float = 8.0
    range_ends: Literal["inclusive", "strict"] = "inclusive"
    padding: Literal["background", "absent"] = "background"
    ignore_iof: float | None = 0.5
    ignore_over: Literal["background", "objects"] = "background"

    def __post_init__(self) -> None:
        require(self.topk >= 1, "topk", "at least 1", self.topk)
        require(0 <= self.neg_iou <= self.pos_iou <= 1, "neg_iou", "0 <= neg_iou <= pos_iou <= 1", self.neg_iou)
        require(0 <= self.alpha <= 20, "alpha", "0 to 20", self.alpha)
        require(0 < self.beta <= 20, "beta", "above 0, at most 20", self.beta)
        require(0 <= self.box_alpha <= 1, "box_alpha", "0 to 1", self.box_alpha)
        require(self.radius >= 0, "radius", "0 or more", self.radius)
        require(self.range_factor > 0, "range_factor", "a positive number of strides", self.range_factor)
        fits = self.ignore_iof is None or 0 <= self.ignore_iof < 1
        require(fits, "ignore_iof", "null, or a share from 0 up to 1", self.ignore_iof)
        if self.ignore_over == "objects" and self.ignore_iof is None:
            raise ConfigError("ignore_over: objects is about ignore regions; set ignore_iof, or leave it out")
        require_custom(self.kind, "kind", self.arguments)
        if is_custom(self.kind):
            require_defaults(self, ("kind", "arguments"), IN_ARGUMENTS)
        for limit in self.part.limits:
            value = getattr(self, limit.key)
            require(limit.fits(value), limit.key, limit.expected, value)

    @property
    def for_boxes(self) -> AssignConfig:
        """The section that the positives of boxes are chosen by. Most assigners choose them as those of classes."""
        return replace(self, **{key: getattr(self, other) for key, other in self.part.for_boxes.items()})

    @property
    def part(self) -> AssignerPart:
        """The line of the assigner in the table; for a user's own, a line with all defaults."""
        return ASSIGNERS.get(self.kind, AssignerPart(self.kind))


@dataclass(frozen=True)
class BoxConfig:
    """How a box is coded, and the loss of boxes.

    code: delta: offsets and log sizes relative to an anchor. ltrb: distances from a point to the four sides. dfl: the
        same in strides, each the mean of a distribution that the network predicts (generalized focal loss).
    stds: delta: the four codes are divided by these when a box is encoded.
    clamp: delta: log sizes are held within +-ln(1000 / 16), or only below it (upper, torchvision).
    activation: ltrb: how an output becomes a distance.
    unit: ltrb: the unit of a distance; anchor is the anchor's width and height.
    bins: dfl: values per side that the network gives probabilities of: 0 to bins - 1 strides, which is as far as a side
        can be from its point. YOLOv8 has 16, the paper of GFL 17.
    dfl_weight: dfl: weight of the loss of distributions, which is a part of the loss of boxes; 0: no such loss.
    loss: l1, smooth_l1 and balanced_l1 compare delta codes. The others, and your own, compare decoded boxes.
    arguments: Arguments of your own loss.
    beta: smooth_l1, balanced_l1: where the curve becomes a line, in units of the code (Detectron's RetinaNet: 0.11).
    weight: Weight of this loss beside the one of classes.
    weighting: With a centerness branch, boxes count by their centerness targets and are divided by the sum of these
        (FCOS's authors, mmdetection). score: they count by the class score that is predicted there, and are divided by
        the sum of these (GFL's authors). none: all count alike and are divided by the number of positives
        (torchvision). With assign.kind tal they count by their alignment, and this key keeps its default.
    """

    code: Literal["delta", "ltrb", "dfl"] = "delta"
    stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    clamp: Literal["both", "upper"] = "both"
    activation: Literal["exp", "relu"] = "exp"
    unit: Literal["stride", "pixel", "anchor"] = "stride"
    bins: int = 16
    dfl_weight: float = 0.25
    loss: BoxLossName | CustomName = "giou"
    arguments: Mapping[str, Any] | None = field(default=None, hash=False)
    beta: float = 1.0
    weight: float = 2.0
    weighting: Literal["centerness", "score", "none"] = "centerness"

    def __post_init__(self) -> None:
        require(min(self.stds) > 0, "stds", "four positive numbers", self.stds)
        if self.code != "ltrb" and (self.activation, self.unit) != ("exp", "stride"):
            raise ConfigError(f"activation: it and unit belong to code: ltrb; {self.code} codes have one form")
        if self.code != "delta" and self.clamp != "both":
            raise ConfigError(f"clamp: upper belongs to code: delta; {self.code} distances have no lower end to clamp")
        require(2 <= self.bins <= 256, "bins", "2 to 256", self.bins)
        require(self.dfl_weight >= 0, "dfl_weight", "0 or a positive number", self.dfl_weight)
        require(self.beta > 0, "beta", "a positive number", self.beta)
        require_custom(self.loss, "loss", self.arguments)
        if is_custom(self.loss) and self.beta != 1.0:
            raise ConfigError(f"beta: {IN_ARGUMENTS}")
        require(self.weight > 0, "weight", "a positive number", self.weight)

    @property
    def channels(self) -> int:
        """How many numbers the network predicts for a box."""
        return 4 * self.bins if self.code == "dfl" else 4

    @property
    def part(self) -> BoxLossPart:
        """The line of the loss in the table; for a user's own, a line with all defaults."""
        return BOX_LOSSES.get(self.loss, BoxLossPart(self.loss))


@dataclass(frozen=True)
class LossConfig:
    """The loss of classes (the one of boxes is `box.loss`), and what all terms are divided by.

    cls: qfl and vfl (quality focal, varifocal) teach the score of an object's class the IoU of the predicted box. With
        assign.kind tal, these and bce teach it the alignment.
    arguments: Arguments of your own loss.
    alpha: focal: the weight of objects; background has 1 - alpha. vfl: the weight of background. null: the papers' 0.25
        and 0.75.
    gamma: focal, qfl, vfl: how strongly points that are already right are damped; 0 is not at all.
    bins: ghm: number of bins over the range of gradients; each bin counts alike.
    smoothing: bce: how far the targets at positive points move towards 1/2. Background keeps its targets.
    hard_negatives: Background points that count for each positive one: the hardest of the image; 0: all count. SSD has
        3.
    normalizer: batch: sums are divided by the positives of the batch. image: each image's sum is divided by its own
        positives, and the images are averaged, so that all images count alike (torchvision's RetinaNet).
    """

    cls: ClassLossName | CustomName = "focal"
    arguments: Mapping[str, Any] | None = field(default=None, hash=False)
    alpha: float | None = None
    gamma: float = 2.0
    bins: int = 10
    smoothing: float = 0.0
    hard_negatives: float = 0.0
    normalizer: Literal["batch", "image"] = "batch"

    OLD_NAMES = {"normaliser": "normalizer"}

    def __post_init__(self) -> None:
        require_custom(self.cls, "cls", self.arguments)
        if is_custom(self.cls):
            require_defaults(self, ("cls", "arguments", "hard_negatives"), IN_ARGUMENTS)
        part = self.part
        fits = self.alpha is None or 0 < self.alpha <= 1
        require(fits, "alpha", "null or a number above 0 and at most 1", self.alpha)
        if self.alpha is not None and "alpha" not in part.reads:
            names = either(name for name, loss in CLASS_LOSSES.items() if "alpha" in loss.reads)
            raise ConfigError(f"alpha: {self.cls} has no such weight; use cls: {names}, or leave alpha out")
        require(0 <= self.gamma <= 10, "gamma", "0 to 10", self.gamma)
        require(2 <= self.bins <= 1000, "bins", "2 to 1000", self.bins)
        require(0 <= self.smoothing < 1, "smoothing", "0 up to 1", self.smoothing)
        for limit in part.limits:
            value = getattr(self, limit.key)
            require(limit.fits(value), limit.key, limit.expected, value)
        if self.smoothing > 0 and not part.takes_smoothing:
            names = either(name for name, loss in CLASS_LOSSES.items() if loss.takes_smoothing)
            raise ConfigError(f"smoothing: {self.cls} needs the targets as they are; use cls: {names}, or smoothing: 0")
        require(self.hard_negatives >= 0, "hard_negatives", "0 or a positive ratio", self.hard_negatives)
        if self.hard_negatives > 0 and part.of_batch:
            raise ConfigError(f"hard_negatives: {self.cls} weighs by all points of the batch; use another cls, or 0")
        if self.normalizer == "image" and part.of_batch:
            raise ConfigError(
                f"normalizer: {self.cls} is a mean over the batch already; use another cls, or normalizer: batch"
            )

    @property
    def part(self) -> ClassLossPart:
        """The line of the loss in the table; for a user's own, a line with all defaults."""
        return CLASS_LOSSES.get(self.cls, ClassLossPart(self.cls))
