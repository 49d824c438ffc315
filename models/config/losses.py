"""The configuration of what is learned: which priors answer for which object, how a box is coded, and the losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from isodet.strict import ConfigError, Own, require, require_defaults
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
from models.config.network import IN_ARGUMENTS, is_own, require_own


@dataclass(frozen=True)
class AssignConfig:
    kind: AssignerName | Own = "atss"
    arguments: Mapping[str, Any] | None = field(default=None, hash=False)
    """Of your own assigner."""
    topk: int = 9
    """atss: candidates per level and object. topk: the same, all positive where they lie inside the object."""
    pos_iou: float = 0.5
    neg_iou: float = 0.4
    """iou: at least `pos_iou` is an object, below `neg_iou` is background, between is ignored."""
    rescue: Literal["overwrite", "restore"] = "overwrite"
    """iou: anchors that overlap an object most are that object's (mmdetection), or their own best's (torchvision)."""
    radius: float = 1.5
    """center: half side of the sampling square around an object's centre, in strides; 0 = its whole box."""
    range_factor: float = 8.0
    """center: level l takes objects whose farthest side is within [f/2, f] strides of level l, f this factor."""
    range_ends: Literal["inclusive", "strict"] = "inclusive"
    """center: whether the two ends of that range belong to it (the authors' code) or not (torchvision)."""
    padding: Literal["background", "absent"] = "background"
    """Priors beyond an image's own padded size in a batch of larger images: background like any other, or not there
    at all, neither as candidates nor in a loss (mmdetection's anchor heads)."""
    ignore_iof: float | None = 0.5
    """Ignore regions (COCO's crowds): priors of which more than this share lies in one teach no background; center
    and topk ask whether the point itself does. Null: regions are background (torchvision, mmdetection as it ships)."""
    ignore_over: Literal["background", "objects"] = "background"
    """What gives way to a region: background only, so that an object in a crowd keeps its priors; or objects too,
    whose candidates those priors are not (mmdetection's `ignore_iof_thr`)."""

    def __post_init__(self) -> None:
        require(self.topk >= 1, "topk", "at least 1", self.topk)
        require(0 <= self.neg_iou <= self.pos_iou <= 1, "neg_iou", "0 <= neg_iou <= pos_iou <= 1", self.neg_iou)
        require(self.radius >= 0, "radius", "0 or more", self.radius)
        require(self.range_factor > 0, "range_factor", "a positive number of strides", self.range_factor)
        fits = self.ignore_iof is None or 0 <= self.ignore_iof < 1
        require(fits, "ignore_iof", "null, or a share from 0 up to 1", self.ignore_iof)
        if self.ignore_over == "objects" and self.ignore_iof is None:
            raise ConfigError("ignore_over: objects is about ignore regions; set ignore_iof, or leave it out")
        require_own(self.kind, "kind", self.arguments)
        if is_own(self.kind):
            require_defaults(self, ("kind", "arguments"), IN_ARGUMENTS)

    @property
    def part(self) -> AssignerPart:
        """The assigner, or what is true of a user's own."""
        return ASSIGNERS.get(self.kind, AssignerPart(self.kind))


@dataclass(frozen=True)
class BoxConfig:
    code: Literal["delta", "ltrb"] = "delta"
    """delta: offsets and log sizes relative to an anchor. ltrb: distances from a point."""
    stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    """delta: what each code is divided by when encoding."""
    clamp: Literal["both", "upper"] = "both"
    """delta: log sizes are held within +-ln(1000 / 16), or only below it (torchvision)."""
    activation: Literal["exp", "relu"] = "exp"
    """ltrb: how an output becomes a distance."""
    unit: Literal["stride", "pixel", "anchor"] = "stride"
    """ltrb: what a distance is counted in; anchor: the anchor's width and height."""
    loss: BoxLossName | Own = "giou"
    """Of overlap, on decoded boxes, as your own is; or of distance, as l1 is, on delta codes."""
    arguments: Mapping[str, Any] | None = field(default=None, hash=False)
    """Of your own loss."""
    beta: float = 1.0
    """smooth_l1, balanced_l1: where the curve becomes a line, in units of the code (Detectron's RetinaNet: 0.11)."""
    weight: float = 2.0
    weighting: Literal["centerness", "none"] = "centerness"
    """With a centerness branch, boxes count by its targets and are divided by their sum (FCOS's authors,
    mmdetection); none: all count alike and are divided by the positives (torchvision)."""

    def __post_init__(self) -> None:
        require(min(self.stds) > 0, "stds", "four positive numbers", self.stds)
        if self.code == "delta" and (self.activation, self.unit) != ("exp", "stride"):
            raise ConfigError("activation: it and unit belong to code: ltrb; delta codes have one form")
        if self.code == "ltrb" and self.clamp != "both":
            raise ConfigError("clamp: upper belongs to code: delta; ltrb distances have no lower end to clamp")
        require(self.beta > 0, "beta", "a positive number", self.beta)
        require_own(self.loss, "loss", self.arguments)
        if is_own(self.loss) and self.beta != 1.0:
            raise ConfigError(f"beta: {IN_ARGUMENTS}")
        require(self.weight > 0, "weight", "a positive number", self.weight)

    @property
    def part(self) -> BoxLossPart:
        """The loss, or what is true of a user's own."""
        return BOX_LOSSES.get(self.loss, BoxLossPart(self.loss))


@dataclass(frozen=True)
class LossConfig:
    """The loss of classes; the one of boxes is `box.loss`. `normaliser` is about all terms."""

    cls: ClassLossName | Own = "focal"
    """qfl and vfl (quality focal, varifocal) teach the score of an object's class the IoU of the predicted box."""
    arguments: Mapping[str, Any] | None = field(default=None, hash=False)
    """Of your own loss."""
    alpha: float | None = None
    """focal: the weight of objects, background has 1 - alpha. vfl: of background. Null: the papers' 0.25 and 0.75."""
    gamma: float = 2.0
    """focal, qfl, vfl: how strongly what is right already is damped; 0 not at all."""
    bins: int = 10
    """ghm: parts of the range of gradients that count alike."""
    smoothing: float = 0.0
    """bce: how far the targets at positive points move towards 1/2 (the background is not in doubt)."""
    hard_negatives: float = 0.0
    """Background points that count for each positive one, the hardest of the image; 0: all do. SSD has 3."""
    normaliser: Literal["batch", "image"] = "batch"
    """Sums are divided by the positives of the batch; or each image's by its own, and averaged over images, so that
    an image with few objects counts as much as one with many (torchvision's RetinaNet)."""

    def __post_init__(self) -> None:
        require_own(self.cls, "cls", self.arguments)
        if is_own(self.cls):
            require_defaults(self, ("cls", "arguments", "hard_negatives"), IN_ARGUMENTS)
        part = self.part
        fits = self.alpha is None or 0 < self.alpha <= 1
        require(fits, "alpha", "null or a number above 0 and at most 1", self.alpha)
        if self.alpha is not None and "alpha" not in part.reads:
            others = either(name for name, other in CLASS_LOSSES.items() if "alpha" in other.reads)
            raise ConfigError(f"alpha: {self.cls} has no such weight; use cls: {others}, or leave alpha out")
        require(0 <= self.gamma <= 10, "gamma", "0 to 10", self.gamma)
        require(2 <= self.bins <= 1000, "bins", "2 to 1000", self.bins)
        require(0 <= self.smoothing < 1, "smoothing", "0 up to 1", self.smoothing)
        for limit in part.limits:
            value = getattr(self, limit.key)
            require(limit.fits(value), limit.key, limit.expected, value)
        if self.smoothing > 0 and not part.takes_smoothing:
            others = either(name for name, other in CLASS_LOSSES.items() if other.takes_smoothing)
            raise ConfigError(
                f"smoothing: {self.cls} needs the targets as they are; use cls: {others}, or smoothing: 0"
            )
        require(self.hard_negatives >= 0, "hard_negatives", "0 or a positive ratio", self.hard_negatives)
        if self.hard_negatives > 0 and part.of_batch:
            raise ConfigError(f"hard_negatives: {self.cls} weighs by all points of the batch; use another cls, or 0")
        if self.normaliser == "image" and part.of_batch:
            raise ConfigError(
                f"normaliser: {self.cls} is a mean over the batch already; use another cls, or normaliser: batch"
            )

    @property
    def part(self) -> ClassLossPart:
        """The loss, or what is true of a user's own."""
        return CLASS_LOSSES.get(self.cls, ClassLossPart(self.cls))
