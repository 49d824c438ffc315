"""The configuration of a model, and the presets that are ATSS, RetinaNet and FCOS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from models.typed import ConfigError, build, merge, require


@dataclass(frozen=True)
class BackboneConfig:
    name: Literal["resnet18", "resnet34", "resnet50", "repvgg_a0"] = "resnet50"
    width: float = 1.0
    """Multiplier on every channel count (rounded to 8); ImageNet weights need 1.0."""
    weights: str | None = None
    """`imagenet` (torchvision's own file, downloaded by torchvision), a path to a state dict, or null."""

    def __post_init__(self) -> None:
        require(0.1 <= self.width <= 4, "width", "a multiplier from 0.1 to 4", self.width)
        if self.weights is not None and self.width != 1.0:
            raise ConfigError(f"weights: {self.weights!r} needs width 1.0, got width {self.width}; set weights: null")
        if self.weights == "imagenet" and not self.name.startswith("resnet"):
            raise ConfigError(f"weights: torchvision has no ImageNet weights for {self.name}; use null or a path")


@dataclass(frozen=True)
class NeckConfig:
    channels: int = 256
    levels: tuple[int, int] = (3, 7)
    """First and last pyramid level; level l has stride 2**l."""
    p6_from: Literal["p5", "c5"] = "p5"
    p7_relu: bool = True
    """ReLU on P6 before the convolution that makes P7, as in the RetinaNet paper."""
    norm: Literal["none", "bn"] = "none"

    def __post_init__(self) -> None:
        require(self.channels >= 8, "channels", "at least 8", self.channels)
        first, last = self.levels
        require(
            2 <= first <= 5 and 5 <= last <= 7, "levels", "[first, last] with first 2..5 and last 5..7", self.levels
        )


@dataclass(frozen=True)
class HeadConfig:
    depth: int = 4
    """Convolutions in each of the two towers."""
    channels: int | None = None
    """Tower width; null means the neck's."""
    norm: Literal["gn", "bn", "none"] = "gn"
    prior: float = 0.01
    """Score every class starts with (RetinaNet paper, section 4.1: bias = -log((1 - prior) / prior))."""

    def __post_init__(self) -> None:
        require(0 <= self.depth <= 8, "depth", "0 to 8", self.depth)
        require(self.channels is None or self.channels >= 8, "channels", "null or at least 8", self.channels)
        require(0 < self.prior < 1, "prior", "a probability between 0 and 1", self.prior)


@dataclass(frozen=True)
class AnchorConfig:
    """`len(ratios) * scales_per_octave` anchors in every cell; point detectors use their centres only."""

    size: float = 8.0
    """Side of the smallest square anchor, in strides."""
    scales_per_octave: int = 1
    ratios: tuple[float, ...] = (1.0,)
    """Height over width."""

    def __post_init__(self) -> None:
        require(self.size > 0, "size", "a positive number of strides", self.size)
        require(1 <= self.scales_per_octave <= 5, "scales_per_octave", "1 to 5", self.scales_per_octave)
        require(len(self.ratios) > 0 and min(self.ratios) > 0, "ratios", "positive height/width ratios", self.ratios)

    @property
    def per_cell(self) -> int:
        return len(self.ratios) * self.scales_per_octave


@dataclass(frozen=True)
class AssignConfig:
    kind: Literal["atss", "iou", "center"] = "atss"
    topk: int = 9
    """atss: candidates per level and object."""
    pos_iou: float = 0.5
    neg_iou: float = 0.4
    """iou: at least `pos_iou` is an object, below `neg_iou` is background, between is ignored."""
    radius: float = 1.5
    """center: half side of the sampling square around an object's centre, in strides; 0 = its whole box."""
    range_factor: float = 8.0
    """center: level l takes objects whose farthest side is within (f/2, f] strides of level l, f this factor."""

    def __post_init__(self) -> None:
        require(self.topk >= 1, "topk", "at least 1", self.topk)
        require(0 <= self.neg_iou <= self.pos_iou <= 1, "neg_iou", "0 <= neg_iou <= pos_iou <= 1", self.neg_iou)
        require(self.radius >= 0, "radius", "0 or more", self.radius)
        require(self.range_factor > 0, "range_factor", "a positive number of strides", self.range_factor)


@dataclass(frozen=True)
class BoxConfig:
    code: Literal["delta", "ltrb"] = "delta"
    """delta: offsets and log sizes relative to an anchor. ltrb: distances from a point, in strides."""
    stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    """delta: what each code is divided by when encoding."""
    loss: Literal["giou", "l1"] = "giou"
    weight: float = 2.0

    def __post_init__(self) -> None:
        require(min(self.stds) > 0, "stds", "four positive numbers", self.stds)
        require(self.weight > 0, "weight", "a positive number", self.weight)


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
    nms_iou: float = 0.6
    candidates: int = 1000
    """K: boxes that enter NMS, over all classes and levels."""
    detections: int = 100
    """D: most detections per image."""

    def __post_init__(self) -> None:
        require(0 <= self.score_threshold < 1, "score_threshold", "0 up to 1", self.score_threshold)
        require(0 < self.nms_iou <= 1, "nms_iou", "above 0, at most 1", self.nms_iou)
        require(1 <= self.candidates <= 3840, "candidates", "1 to 3840 (TensorRT's TopK limit)", self.candidates)
        require(1 <= self.detections <= self.candidates, "detections", "1 to `candidates`", self.detections)


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
        if self.box.code == "ltrb" and self.box.loss == "l1":
            raise ConfigError("box.loss: l1 is defined on delta codes; use giou with code: ltrb")
        if self.assign.kind == "center" and self.anchors.per_cell > 1:
            raise ConfigError(
                "anchors: assign.kind center needs one anchor per cell, because all of a cell share its centre; got "
                f"{self.anchors.per_cell}"
            )


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
    return build(ModelConfig, mapping, path)
