"""The configuration of a model, and the presets that are ATSS, RetinaNet and FCOS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from models.network_config import IN_ARGUMENTS, BackboneConfig, NeckConfig, is_own, require_own
from models.typed import ConfigError, Own, build, merge, require, require_defaults
from models.undeployable import refuse_undeployable


@dataclass(frozen=True)
class HeadConfig:
    depth: int = 4
    """Convolutions in each of the two towers."""
    channels: int | None = None
    """Tower width; null means the neck's."""
    norm: Literal["gn", "bn", "sepbn", "none"] = "sepbn"
    """sepbn: BatchNorms with statistics of their own for each level behind shared convolutions. gn: what the papers'
    heads have, and the choice for batches of one or two images (docs/benchmarks/head_norms.md)."""
    block: Literal["conv", "dw", "shuffle", "repconv"] = "conv"
    """Of the towers: 3x3; depthwise 3x3 and 1x1; 3x3 in four groups and a shuffle; 3x3 + 1x1 + identity that fold."""
    implicit: bool = False
    """YOLOR's learnable vectors around the prediction convolutions; they fold into them."""
    conv_bias: bool = False
    """A bias in the towers' convolutions beside a norm too, as in FCOS's authors' code; without a norm there is one."""
    level_scales: bool = True
    """A learnable factor on each level's box codes; false: 1, as in torchvision and RetinaNet."""
    quality_on: Literal["box", "cls"] = "box"
    """The tower that feeds the quality branch; cls: FCOS's first paper and mmdetection's plain FCOS."""
    prior: float = 0.01
    """Score every class starts with (RetinaNet paper, section 4.1: bias = -log((1 - prior) / prior))."""

    def __post_init__(self) -> None:
        require(0 <= self.depth <= 8, "depth", "0 to 8", self.depth)
        require(self.channels is None or self.channels >= 8, "channels", "null or at least 8", self.channels)
        require(0 < self.prior < 1, "prior", "a probability between 0 and 1", self.prior)
        if self.block == "repconv" and (self.norm != "bn" or self.conv_bias):
            raise ConfigError("block: repconv brings a BatchNorm on each branch; set norm: bn and conv_bias: false")


@dataclass(frozen=True)
class AnchorConfig:
    """`len(ratios) * scales_per_octave` anchors in every cell; point detectors use their centres only."""

    size: float = 8.0
    """Side of the smallest square anchor, in strides."""
    scales_per_octave: int = 1
    ratios: tuple[float, ...] = (1.0,)
    """Height over width."""
    offset: float = 0.5
    """Where in its cell a prior stands: 0.5 the centre, 0 the corner (torchvision; mmdetection's anchors)."""
    stride_rule: Literal["nominal", "padded_over_grid"] = "nominal"
    """Distance of neighbouring cells: 2**level, or input side // grid side on each axis (torchvision)."""
    whole_pixels: bool = False
    """Octave sizes cut to whole pixels and anchor corners rounded (torchvision)."""

    def __post_init__(self) -> None:
        require(self.size > 0, "size", "a positive number of strides", self.size)
        require(1 <= self.scales_per_octave <= 5, "scales_per_octave", "1 to 5", self.scales_per_octave)
        require(len(self.ratios) > 0 and min(self.ratios) > 0, "ratios", "positive height/width ratios", self.ratios)
        require(0 <= self.offset <= 1, "offset", "a part of the cell, 0 to 1", self.offset)

    @property
    def per_cell(self) -> int:
        return len(self.ratios) * self.scales_per_octave


@dataclass(frozen=True)
class AssignConfig:
    kind: Literal["atss", "iou", "center", "topk"] | Own = "atss"
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
    loss: Literal[
        "giou", "diou", "ciou", "eiou", "iou_log", "iou_linear", "l1", "smooth_l1", "balanced_l1"
    ] | Own = "giou"  # fmt: skip
    """Of overlap, on decoded boxes, as your own is; or of distance (the last three), on delta codes."""
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


@dataclass(frozen=True)
class LossConfig:
    """The loss of classes; the one of boxes is `box.loss`. `normaliser` is about all terms."""

    cls: Literal["focal", "qfl", "vfl", "ghm", "bce"] | Own = "focal"
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
        most = "below 1" if self.cls == "focal" else "at most 1"
        fits = self.alpha is None or 0 < self.alpha < 1 or (self.alpha == 1 and self.cls != "focal")
        require(fits, "alpha", f"null or a number above 0 and {most}", self.alpha)
        if self.alpha is not None and self.cls not in ("focal", "vfl"):
            raise ConfigError(f"alpha: {self.cls} has no such weight; use cls: focal or vfl, or leave alpha out")
        require(0 <= self.gamma <= 10, "gamma", "0 to 10", self.gamma)
        if self.cls == "qfl" and 0 < self.gamma < 1:
            raise ConfigError(f"gamma: qfl has an endless slope below 1, got {self.gamma}; use 0 or 1..10")
        require(2 <= self.bins <= 1000, "bins", "2 to 1000", self.bins)
        require(0 <= self.smoothing < 1, "smoothing", "0 up to 1", self.smoothing)
        if self.smoothing > 0 and self.cls != "bce":
            raise ConfigError(f"smoothing: {self.cls} needs the targets as they are; use cls: bce, or smoothing: 0")
        require(self.hard_negatives >= 0, "hard_negatives", "0 or a positive ratio", self.hard_negatives)
        if self.hard_negatives > 0 and self.cls == "ghm":
            raise ConfigError("hard_negatives: ghm weighs by the density of all points; use another cls, or 0")
        if self.normaliser == "image" and self.cls == "ghm":
            raise ConfigError("normaliser: ghm is a mean over the batch already; use another cls, or normaliser: batch")


@dataclass(frozen=True)
class PixelConfig:
    """What the network's first layer does to uint8 BGR pixels. Defaults are ImageNet's."""

    order: Literal["rgb", "bgr"] = "rgb"
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    """In `order`, on the scale 0..255."""

    def __post_init__(self) -> None:
        require(min(self.std) > 0, "std", "three positive numbers", self.std)


@dataclass(frozen=True)
class ResizeConfig:
    """How a picture becomes the network's input."""

    rule: Literal["letterbox", "short-side"] = "letterbox"
    """letterbox: into `input_size_hw`. short-side: the papers' rule, each picture to a size of its own; a graph
    exported from such a model has one size and letterboxes into `input_size_hw`."""
    short: int = 800
    """short-side: pixels of the short side,"""
    long: int = 1333
    """unless the long side would be longer than this;"""
    multiple: int = 32
    """then padded, right and below, to multiples of this."""
    rounding: Literal["nearest", "floor"] = "nearest"
    """Of the resized sides: nearest as mmdetection, floor as torchvision."""

    def __post_init__(self) -> None:
        require(self.short >= 64, "short", "at least 64 px", self.short)
        require(self.long >= self.short, "long", "at least `short`", self.long)
        require(self.multiple % 32 == 0 and self.multiple > 0, "multiple", "a multiple of 32", self.multiple)


@dataclass(frozen=True)
class PostprocessConfig:
    score_threshold: float = 0.05
    """Lowest score the graph keeps; an application's own threshold is applied later, by the runtime."""
    threshold_on: Literal["score", "class"] = "score"
    """What `score_threshold` is compared with: the final score, or the class probability alone (mmdetection)."""
    score: Literal["geometric", "product"] = "geometric"
    """With a quality branch, a score is sqrt(class * quality), or class * quality (mmdetection)."""
    nms_iou: float = 0.6
    candidates: int = 1000
    """K: boxes that enter NMS, over all classes and levels."""
    level_candidates: int = 0
    """At most so many of K come from one level, as in the papers; 0: no limit."""
    level_by: Literal["score", "class"] = "score"
    """What the best of a level are best by: the final score, or the class probability alone (mmdetection)."""
    empty_boxes: Literal["drop", "keep"] = "drop"
    """Boxes of which clipping to the input leaves no area: dropped, or detections like any other (torchvision)."""
    detections: int = 100
    """D: most detections per image."""

    def __post_init__(self) -> None:
        require(0 <= self.score_threshold < 1, "score_threshold", "0 up to 1", self.score_threshold)
        require(0 < self.nms_iou <= 1, "nms_iou", "above 0, at most 1", self.nms_iou)
        require(1 <= self.candidates <= 3840, "candidates", "1 to 3840 (TensorRT's TopK limit)", self.candidates)
        require(1 <= self.detections <= self.candidates, "detections", "1 to `candidates`", self.detections)
        require(
            0 <= self.level_candidates <= 3840, "level_candidates", "0 to 3840 (TensorRT's TopK limit)",
            self.level_candidates,
        )  # fmt: skip
        if self.level_by == "class" and self.level_candidates == 0:
            raise ConfigError("level_by: class chooses within a level; set level_candidates, or level_by: score")


@dataclass(frozen=True)
class ModelConfig:
    classes: tuple[str, ...]
    detector: Literal["atss", "retinanet", "fcos"] = "atss"
    """The preset that the keys `assign`, `anchors`, `box`, `quality` were filled from."""
    input_size_hw: tuple[int, int] = (640, 640)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    neck: NeckConfig = field(default_factory=NeckConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    assign: AssignConfig = field(default_factory=AssignConfig)
    box: BoxConfig = field(default_factory=BoxConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    quality: Literal["centerness", "iou", "none"] = "centerness"
    pixels: PixelConfig = field(default_factory=PixelConfig)
    resize: ResizeConfig = field(default_factory=ResizeConfig)
    postprocess: PostprocessConfig = field(default_factory=PostprocessConfig)

    def __post_init__(self) -> None:
        require(len(self.classes) > 0, "classes", "at least one class name", self.classes)
        twice = sorted({c for c in self.classes if self.classes.count(c) > 1})
        require(not twice, "classes", f"names that differ (twice: {', '.join(twice)})", self.classes)
        require(
            min(self.input_size_hw) >= 64 and all(side % 32 == 0 for side in self.input_size_hw),
            "input_size_hw", "[height, width], each a multiple of 32 and at least 64", self.input_size_hw,
        )  # fmt: skip
        if self.backbone.dilated and self.neck.levels[0] == 5:
            raise ConfigError("neck.levels: a dilated backbone ends at stride 16, so levels begin at 4 or below")
        if self.head.block == "shuffle" and (self.neck.channels % 4 or (self.head.channels or 4) % 4):
            raise ConfigError("head.block: shuffle has four groups, so channels of neck and head are multiples of 4")
        if self.box.code == "ltrb" and self.box.loss in ("l1", "smooth_l1", "balanced_l1"):
            raise ConfigError(f"box.loss: {self.box.loss} is defined on delta codes; use giou with code: ltrb")
        if self.loss.cls in ("qfl", "vfl") and self.quality != "none":
            raise ConfigError(
                f"loss.cls: {self.loss.cls} makes the class score the box's quality, and a quality branch would count "
                f"it twice; set quality: none, or loss.cls: focal with quality: {self.quality}"
            )
        if self.head.quality_on == "cls" and self.quality == "none":
            raise ConfigError("head.quality_on: cls chooses the tower of a branch, but quality is none; leave it out")
        if self.assign.kind in ("center", "topk") and self.anchors.per_cell > 1:
            raise ConfigError(
                f"anchors: assign.kind {self.assign.kind} needs one anchor per cell, because all of a cell share its "
                f"centre; got {self.anchors.per_cell}"
            )


def own_parts_of(config: ModelConfig, network_only: bool = False) -> list[tuple[str, str]]:
    """(key, name) of every own part in `config`; `network_only` leaves out what only training calls."""
    names = [("model.backbone.name", config.backbone.name), ("model.neck.kind", config.neck.kind)]
    if not network_only:
        names += [("model.assign.kind", config.assign.kind), ("model.box.loss", config.box.loss),
                  ("model.loss.cls", config.loss.cls)]  # fmt: skip
    return [(key, name) for key, name in names if is_own(name)]


PRESETS: dict[str, dict[str, Any]] = {
    "atss": {  # Zhang et al., Bridging the Gap Between Anchor-based and Anchor-free Detection, 2020
        "anchors": {"size": 8.0}, "assign": {"kind": "atss"},
        "box": {"code": "delta", "loss": "giou", "weight": 2.0}, "quality": "centerness",
    },
    "retinanet": {  # Lin et al., Focal Loss for Dense Object Detection, 2017
        "anchors": {"size": 4.0, "scales_per_octave": 3, "ratios": [0.5, 1.0, 2.0]}, "assign": {"kind": "iou"},
        "box": {"code": "delta", "stds": [1.0, 1.0, 1.0, 1.0], "loss": "l1", "weight": 1.0}, "quality": "none",
    },
    "fcos": {  # Tian et al., FCOS, 2019, with the improvements of its authors' later code
        "anchors": {"size": 8.0}, "assign": {"kind": "center"},
        "box": {"code": "ltrb", "loss": "giou", "weight": 1.0}, "quality": "centerness",
    },
}  # fmt: skip


def model_config(mapping: Any, path: str = "model") -> ModelConfig:
    """A `ModelConfig` from a mapping: the preset named by `detector`, under the keys that are given."""
    if isinstance(mapping, Mapping):
        preset = mapping.get("detector", "atss")
        if isinstance(preset, str) and preset in PRESETS:
            mapping = merge(PRESETS[preset], mapping)
        refuse_undeployable(mapping, path)
    return build(ModelConfig, mapping, path)
