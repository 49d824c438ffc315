"""The configuration of a model, and the presets that are ATSS, RetinaNet, FCOS, GFL (both versions) and TOOD."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from isodet.strict import ConfigError, build, merge, require
from models.config.choices import ASSIGNERS, BACKBONES, CLASS_LOSSES, HEAD_BLOCKS, HeadBlockName, Part, either
from models.config.losses import AssignConfig, BoxConfig, LossConfig
from models.config.network import BackboneConfig, NeckConfig, is_custom
from models.config.unsupported import refuse_undeployable


@dataclass(frozen=True)
class HeadConfig:
    """The head that all levels share: two towers, and the predictions.

    depth: Convolutions in each of the two towers.
    channels: Width of the towers; null is the neck's.
    norm: sepbn: the convolutions are shared and each level has BatchNorms of its own. gn: the papers' norm, and the
        choice for batches of one or two images (docs/benchmarks/head_norms.md).
    block: Block of the towers: 3x3 (conv); depthwise 3x3 and 1x1 (dw); 3x3 in four groups and a shuffle (shuffle); 3x3,
        1x1 and identity, which fold into one (repconv).
    implicit: Learnable vectors around the prediction convolutions, as in YOLOR. They fold into the convolutions.
    conv_bias: A bias in the towers' convolutions beside the norm, as in the code of FCOS's authors. Without a norm
        there always is one.
    level_scales: A learnable factor on each level's box codes. Without it the factor is 1, as in torchvision and
        RetinaNet.
    quality_on: The tower that feeds the quality branch. cls: FCOS's first paper and mmdetection's plain FCOS.
    prior: Score that every class starts with: bias = -log((1 - prior) / prior) (RetinaNet paper, section 4.1).
    """

    depth: int = 4
    channels: int | None = None
    norm: Literal["gn", "bn", "sepbn", "none"] = "sepbn"
    block: HeadBlockName = "conv"
    implicit: bool = False
    conv_bias: bool = False
    level_scales: bool = True
    quality_on: Literal["box", "cls"] = "box"
    prior: float = 0.01

    def __post_init__(self) -> None:
        require(0 <= self.depth <= 8, "depth", "0 to 8", self.depth)
        require(self.channels is None or self.channels >= 8, "channels", "null or at least 8", self.channels)
        require(0 < self.prior < 1, "prior", "a probability between 0 and 1", self.prior)
        if HEAD_BLOCKS[self.block].own_norms and (self.norm != "bn" or self.conv_bias):
            raise ConfigError(
                f"block: {self.block} brings a BatchNorm on each branch; set norm: bn and conv_bias: false"
            )


@dataclass(frozen=True)
class AnchorConfig:
    """`len(ratios) * scales_per_octave` anchors in every cell. Detectors of points use their centers only.

    size: Side of the smallest square anchor, in strides.
    scales_per_octave: Sizes of anchors from one level to the next.
    ratios: Height over width.
    offset: Where in its cell a prior stands: 0.5 is the center, 0 the corner (torchvision; mmdetection's anchors).
    stride_rule: Distance of neighboring cells: 2**level, or input side // grid side on each axis (torchvision).
    whole_pixels: Cut octave sizes to whole pixels and round the corners of anchors (torchvision).
    """

    size: float = 8.0
    scales_per_octave: int = 1
    ratios: tuple[float, ...] = (1.0,)
    offset: float = 0.5
    stride_rule: Literal["nominal", "padded_over_grid"] = "nominal"
    whole_pixels: bool = False

    def __post_init__(self) -> None:
        require(self.size > 0, "size", "a positive number of strides", self.size)
        require(1 <= self.scales_per_octave <= 5, "scales_per_octave", "1 to 5", self.scales_per_octave)
        require(len(self.ratios) > 0 and min(self.ratios) > 0, "ratios", "positive height/width ratios", self.ratios)
        require(0 <= self.offset <= 1, "offset", "a part of the cell, 0 to 1", self.offset)

    @property
    def per_cell(self) -> int:
        return len(self.ratios) * self.scales_per_octave


@dataclass(frozen=True)
class PixelConfig:
    """What the network's first layer does to uint8 BGR pixels. The defaults are ImageNet's, as torchvision and timm use
    them; EfficientNet-Lite's are 127 and 128 for each channel, as its weights were trained.

    order: Channel order that the backbone expects.
    mean: Mean of each channel, in `order`, on the scale 0..255.
    std: Standard deviation of each channel, in `order`, on the scale 0..255.
    """

    order: Literal["rgb", "bgr"] = "rgb"
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def __post_init__(self) -> None:
        require(min(self.std) > 0, "std", "three positive numbers", self.std)


@dataclass(frozen=True)
class ResizeConfig:
    """How a picture becomes the network's input.

    rule: letterbox: into `input_size_hw`. short-side: the papers' rule, which gives each picture a size of its own. A
        graph exported from such a model has one size and letterboxes into `input_size_hw`.
    short: short-side: length of the short side in pixels, unless the long side would pass `long`.
    long: short-side: largest length of the long side in pixels.
    multiple: short-side: the result is padded on the right and at the bottom to multiples of this.
    rounding: short-side: how resized sides are rounded: nearest as in mmdetection, floor as in torchvision.
    """

    rule: Literal["letterbox", "short-side"] = "letterbox"
    short: int = 800
    long: int = 1333
    multiple: int = 32
    rounding: Literal["nearest", "floor"] = "nearest"

    def __post_init__(self) -> None:
        require(self.short >= 64, "short", "at least 64 px", self.short)
        require(self.long >= self.short, "long", "at least `short`", self.long)
        require(self.multiple % 32 == 0 and self.multiple > 0, "multiple", "a multiple of 32", self.multiple)


@dataclass(frozen=True)
class PostprocessConfig:
    """From raw outputs to detections.

    score_threshold: Lowest score that the graph keeps. An application's own threshold is applied later, by the runtime.
    threshold_on: What `score_threshold` is compared with: the final score, or the class probability alone
        (mmdetection).
    score: The score with a quality branch: sqrt(class * quality), or class * quality (product, mmdetection). With
        `quality: distribution` it is the product always, because that is what is learned.
    nms_iou: NMS drops a box whose IoU with a better one of its class is above this.
    candidates: K: boxes that enter NMS, over all classes and levels.
    level_candidates: Most boxes of K that may come from one level, as in the papers; 0: no limit.
    level_by: What the best of a level are chosen by: the final score, or the class probability alone (mmdetection).
    empty_boxes: What happens to boxes that have no area inside the input: they are dropped, or kept like any other
        (torchvision).
    detections: D: most detections per image.
    """

    score_threshold: float = 0.05
    threshold_on: Literal["score", "class"] = "score"
    score: Literal["geometric", "product"] = "geometric"
    nms_iou: float = 0.6
    candidates: int = 1000
    level_candidates: int = 0
    level_by: Literal["score", "class"] = "score"
    empty_boxes: Literal["drop", "keep"] = "drop"
    detections: int = 100

    def __post_init__(self) -> None:
        require(0 <= self.score_threshold < 1, "score_threshold", "0 up to 1", self.score_threshold)
        require(0 < self.nms_iou <= 1, "nms_iou", "above 0, at most 1", self.nms_iou)
        require(1 <= self.candidates <= 3840, "candidates", "1 to 3840 (TensorRT's TopK limit)", self.candidates)
        require(1 <= self.detections <= self.candidates, "detections", "1 to `candidates`", self.detections)
        require(
            0 <= self.level_candidates <= 3840,
            "level_candidates",
            "0 to 3840 (TensorRT's TopK limit)",
            self.level_candidates,
        )
        if self.level_by == "class" and self.level_candidates == 0:
            raise ConfigError("level_by: class chooses within a level; set level_candidates, or level_by: score")


@dataclass(frozen=True)
class ModelConfig:
    """A detector: what it finds, and what it is made of.

    classes: Names of the classes, in the order of the labels; in a file also the path of a text file with a name per
        line.
    detector: A preset for `assign`, `anchors`, `box`, `loss` and `quality`. It lies under the keys that are given.
    input_size_hw: Height and width of the network's input in pixels, multiples of 32.
    backbone: The network that reads the picture.
    neck: The feature pyramid.
    head: The towers and the predictions.
    anchors: The priors.
    assign: Which priors answer for which object.
    box: How a box is coded and learned.
    loss: How classes are learned.
    quality: A branch that says how good a box is, and what it learns; none: no such branch. distribution: two small
        layers read it off the distributions of box.code dfl, and its product with the class probability is what
        loss.cls teaches (GFLv2).
    pixels: Normalization of the input.
    resize: How a picture becomes the input.
    postprocess: From raw outputs to detections.
    """

    classes: tuple[str, ...]
    detector: Literal["atss", "retinanet", "fcos", "gfl", "gflv2", "tood"] = "atss"
    input_size_hw: tuple[int, int] = (640, 640)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    neck: NeckConfig = field(default_factory=NeckConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    assign: AssignConfig = field(default_factory=AssignConfig)
    box: BoxConfig = field(default_factory=BoxConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    quality: Literal["centerness", "iou", "distribution", "none"] = "centerness"
    pixels: PixelConfig = field(default_factory=PixelConfig)
    resize: ResizeConfig = field(default_factory=ResizeConfig)
    postprocess: PostprocessConfig = field(default_factory=PostprocessConfig)

    def __post_init__(self) -> None:
        require(len(self.classes) > 0, "classes", "at least one class name", self.classes)
        twice = sorted({c for c in self.classes if self.classes.count(c) > 1})
        require(not twice, "classes", f"names that differ (twice: {', '.join(twice)})", self.classes)
        require(
            all(64 <= side <= 1 << 16 and side % 32 == 0 for side in self.input_size_hw),
            "input_size_hw",
            "[height, width], each a multiple of 32 from 64 to 65536",
            self.input_size_hw,
        )
        if self.backbone.dilated and self.neck.levels[0] == 5:
            raise ConfigError("neck.levels: a dilated backbone ends at stride 16, so levels begin at 4 or below")
        groups = HEAD_BLOCKS[self.head.block].groups
        if self.neck.channels % groups or (self.head.channels or groups) % groups:
            raise ConfigError("head.block: shuffle has four groups, so channels of neck and head are multiples of 4")
        if self.box.code != "delta" and self.box.part.of == "codes":
            raise ConfigError(
                f"box.loss: {self.box.loss} is defined on delta codes; use giou with code: {self.box.code}"
            )
        if self.box.code == "dfl" and self.anchors.per_cell > 1:
            raise ConfigError(
                "anchors: box.code dfl needs one anchor per cell, because its distances are from the point that all of "
                f"a cell share; got {self.anchors.per_cell}"
            )
        if self.quality == "distribution":
            self._require_distribution()
        elif self.loss.part.teaches_iou and self.quality != "none":
            raise ConfigError(
                f"loss.cls: {self.loss.cls} makes the class score the box's quality, and a quality branch would count "
                f"it twice; set quality: none, or loss.cls: focal with quality: {self.quality}"
            )
        if self.head.quality_on == "cls" and self.quality == "none":
            raise ConfigError("head.quality_on: cls chooses the tower of a branch, but quality is none; leave it out")
        if self.assign.part.of_points and self.anchors.per_cell > 1:
            raise ConfigError(
                f"anchors: assign.kind {self.assign.kind} needs one anchor per cell, because all of a cell share its "
                f"center; got {self.anchors.per_cell}"
            )
        if self.assign.part.soft_targets:
            self._require_soft_targets()

    def _require_distribution(self) -> None:
        """Raise `ConfigError` for what does not go with a quality that is read off the distributions of boxes."""
        if self.box.code != "dfl":
            raise ConfigError(
                "quality: distribution reads the distributions of box.code: dfl; set that, or quality: centerness, got "
                f"box.code: {self.box.code}"
            )
        require(self.box.bins >= 4, "box.bins", "4 or more, of which quality: distribution reads 4", self.box.bins)
        if not self.loss.part.teaches_iou:
            names = either(name for name, loss in CLASS_LOSSES.items() if loss.teaches_iou)
            raise ConfigError(
                "loss.cls: quality: distribution learns by a loss whose target is the IoU of the box, which "
                f"{self.loss.cls} does not have; use loss.cls: {names}"
            )
        if self.head.quality_on == "cls":
            raise ConfigError("head.quality_on: quality: distribution reads boxes and no tower; leave it out")

    def _require_soft_targets(self) -> None:
        """Raise `ConfigError` for what does not go with an assigner that teaches alignments instead of classes."""
        kind = self.assign.kind
        if self.quality not in ("distribution", "none"):
            raise ConfigError(
                f"quality: assign.kind {kind} makes the class score the box's quality, and a quality branch would "
                f"count it twice; set quality: none, got {self.quality}"
            )
        if not self.loss.part.takes_soft:
            names = either(name for name, loss in CLASS_LOSSES.items() if loss.takes_soft)
            raise ConfigError(
                f"loss.cls: assign.kind {kind} has targets between 0 and 1, which {self.loss.cls} is not made for; use "
                f"loss.cls: {names}"
            )
        if self.loss.smoothing:
            raise ConfigError(f"loss.smoothing: the targets of assign.kind {kind} are soft already; set smoothing: 0")
        if self.box.weighting != "centerness":
            raise ConfigError(
                f"box.weighting: with assign.kind {kind} boxes count by their alignment; set weighting: centerness, "
                f"the default, got {self.box.weighting}"
            )


def custom_parts_of(config: ModelConfig, network_only: bool = False) -> list[tuple[str, str]]:
    """(key, name) of every part of the user's own in `config`; `network_only` leaves out what only training calls."""
    names = {"model.backbone.name": config.backbone.name, "model.neck.kind": config.neck.kind}
    if not network_only:
        names |= {"model.assign.kind": config.assign.kind, "model.box.loss": config.box.loss}
        names |= {"model.loss.cls": config.loss.cls}
    return [(key, name) for key, name in names.items() if is_custom(name)]


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
    "gfl": {  # Li et al., Generalized Focal Loss, 2020, the first version; its n = 16 is 17 values per side
        "anchors": {"size": 8.0}, "assign": {"kind": "atss"}, "loss": {"cls": "qfl"},
        "box": {"code": "dfl", "bins": 17, "loss": "giou", "weight": 2.0, "weighting": "score"}, "quality": "none",
    },
    "gflv2": {  # Li et al., Generalized Focal Loss V2, 2021
        "anchors": {"size": 8.0}, "assign": {"kind": "atss"}, "loss": {"cls": "qfl"},
        "box": {"code": "dfl", "bins": 17, "loss": "giou", "weight": 2.0, "weighting": "score"},
        "quality": "distribution",
    },
    # Feng et al., TOOD: Task-aligned One-stage Object Detection, 2021: the assignment and its losses, without its
    # T-head, which samples features where the picture sends it, and without the first epochs that assign by ATSS.
    "tood": {
        "anchors": {"size": 8.0}, "loss": {"cls": "qfl"},
        "assign": {"kind": "tal", **ASSIGNERS["tal"].implies["assign"]},
        "box": {"code": "ltrb", "loss": "giou", "weight": 2.0}, "quality": "none",
    },
}  # fmt: skip


def model_config(mapping: Any, path: str = "model") -> ModelConfig:
    """A `ModelConfig` from a mapping.

    Its keys override those of the preset that `detector` names, and those that its assigner and backbone imply.
    """
    if isinstance(mapping, Mapping):
        preset = mapping.get("detector", "atss")
        if isinstance(preset, str) and preset in PRESETS:
            mapping = merge(PRESETS[preset], mapping)
        tables: dict[tuple[str, str], Mapping[str, Part]] = {
            ("assign", "kind"): ASSIGNERS,
            ("backbone", "name"): BACKBONES,
        }
        for (section, key), table in tables.items():
            values = mapping.get(section)
            part = table.get(str(values.get(key))) if isinstance(values, Mapping) else None
            if part is not None:
                mapping = merge(part.implies, mapping)
        refuse_undeployable(mapping, path)
    return build(ModelConfig, mapping, path)
