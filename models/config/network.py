"""The configuration of backbone and neck."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from isodet.strict import ConfigError, CustomName, check_custom_name, nearest, require, require_defaults
from models.config.choices import BACKBONES, NECKS, BackbonePart, NeckName, NeckPart, either

IN_ARGUMENTS = "your own part does not read this key, what it needs goes into arguments"


def is_custom(name: str) -> bool:
    """Whether `name` names a user's own part, `package.module:Name`."""
    return ":" in name and not name.startswith("timm:")


def require_custom(name: str, key: str, arguments: Mapping[str, Any] | None) -> None:
    """Raise `ConfigError` for `arguments` where `name`, the value of `key`, is no part of the user's own."""
    if arguments is not None and not is_custom(name):
        raise ConfigError(
            f"arguments: they are for your own part (package.module:Name), but {key} is {name}; set arguments: null"
        )


@dataclass(frozen=True)
class BackboneConfig:
    """The network that turns a picture into features.

    name: One of isodet's own networks, `timm:` and the name of a network that the package timm offers with features, or
        your own `package.module:Name` (docs/extending.md).
    arguments: Arguments of your own backbone.
    width: Multiplier of every channel count, rounded to multiples of 8. ImageNet weights need 1.0.
    weights: `imagenet` (the best published ones, see `trainer weights`), `imagenet_v1` (torchvision's first, which the
        papers started from), the path of a state dict under its publisher's names or ours, or null.
    style: Where a bottleneck strides: in its 3x3 (pytorch), or in its first 1x1 as the original ResNets do (caffe).
    norm: frozen: BatchNorms that never learn. sync: BatchNorms with the statistics of all processes, on GPUs only; in
        one process or on a CPU it is bn. gn: GroupNorms.
    norm_eps: Epsilon of every norm; null is the network's own.
    frozen_stages: How many of the stem and the four stages, in this order, never learn. Their BatchNorms are fixed too.
    dilated: C5 keeps stride 16, dilated by 2, and takes the place of C4. Convolutions make the levels above from it.
    """

    name: str = "resnet50"
    arguments: Mapping[str, Any] | None = field(default=None, hash=False)
    width: float = 1.0
    weights: str | None = None
    style: Literal["pytorch", "caffe"] = "pytorch"
    norm: Literal["bn", "frozen", "sync", "gn"] = "bn"
    norm_eps: float | None = None
    frozen_stages: int = 0
    dilated: bool = False

    def __post_init__(self) -> None:
        timm, custom, name = self.name.startswith("timm:"), is_custom(self.name), self.name
        if custom:
            check_custom_name(name, "name")
        elif name not in BACKBONES and not (timm and len(name) > len("timm:")):
            raise ConfigError(
                f"name: expected a backbone or timm:NAME, or your own package.module:Name, got {name!r}"
                f"{nearest(name, BACKBONES)}"
            )
        require_custom(name, "name", self.arguments)
        part = self.part
        require(0.1 <= self.width <= 4, "width", "a multiplier from 0.1 to 4", self.width)
        require(0 <= self.frozen_stages <= 5, "frozen_stages", "0 to 5 (stem and four stages)", self.frozen_stages)
        require(self.norm_eps is None or 0 <= self.norm_eps < 1, "norm_eps", "null, or 0 up to 1", self.norm_eps)
        if self.weights is not None and self.width != 1.0:
            raise ConfigError(f"weights: {self.weights!r} needs width 1.0, got width {self.width}; set weights: null")
        if self.weights in ("imagenet", "imagenet_v1"):
            only_one = timm or part.imagenet != "torchvision"
            if custom or not part.imagenet or (only_one and self.weights != "imagenet"):
                raise ConfigError(f"weights: nobody publishes {self.weights} weights for {name}; use null or a path")
            if self.norm == "gn" or self.style == "caffe":
                change = "GroupNorms" if self.norm == "gn" else "style: caffe"
                raise ConfigError(f"weights: published ImageNet weights are not made for {change}; give a path")
        if self.style == "caffe" and not part.bottlenecks:
            raise ConfigError(f"style: caffe is about bottlenecks, of which {name} has none; set style: pytorch")
        if part.folds and (self.norm == "gn" or self.dilated):
            key = "norm: gn" if self.norm == "gn" else "dilated: true"
            raise ConfigError(
                f"{key} does not fit {name}, whose branches fold into one plain 3x3 convolution by their "
                "BatchNorms; use a ResNet or a MobileNet"
            )
        if custom:
            if self.norm in ("sync", "gn"):
                raise ConfigError(f"norm: your own backbone has the norms it makes; use bn or frozen, got {self.norm}")
            allowed = ("name", "arguments", "weights", "norm", "norm_eps", "frozen_stages")
            require_defaults(self, allowed, IN_ARGUMENTS)
        if timm and (self.norm in ("sync", "gn") or self.frozen_stages or self.dilated or self.width != 1.0):
            raise ConfigError(
                "name: a network of timm comes as it is: norm: bn or frozen, frozen_stages: 0, dilated: "
                "false, width: 1; for more choose a backbone that isodet has itself"
            )

    @property
    def part(self) -> BackbonePart:
        """The line of the backbone in the table; for timm's and a user's own, a line with all defaults."""
        return BACKBONES.get(self.name, BackbonePart(self.name))


@dataclass(frozen=True)
class NeckConfig:
    """The feature pyramid.

    kind: The form of the pyramid, or your own neck.
    arguments: Arguments of your own neck.
    channels: Width of every level.
    levels: First and last pyramid level; level l has stride 2**l.
    depth: bifpn: how many times the pyramid is crossed. reppan: blocks in each of its nodes.
    p6_from: The first level above the backbone's last is made of the level below it (p5), or of the backbone's feature
        (c5).
    p7_relu: A ReLU on P6 before the convolution that makes P7, as in the RetinaNet paper.
    norm: Norm behind each convolution.
    """

    kind: NeckName | CustomName = "fpn"
    arguments: Mapping[str, Any] | None = field(default=None, hash=False)
    channels: int = 256
    levels: tuple[int, int] = (3, 7)
    depth: int = 1
    p6_from: Literal["p5", "c5"] = "p5"
    p7_relu: bool = True
    norm: Literal["none", "bn", "gn"] = "none"

    def __post_init__(self) -> None:
        require(8 <= self.channels <= 8192, "channels", "8 to 8192", self.channels)
        first, last = self.levels
        in_range = 2 <= first <= 5 <= last <= 7
        require(in_range, "levels", "[first, last] with first 2..5 and last 5..7", self.levels)
        require(1 <= self.depth <= 12, "depth", "1 to 12", self.depth)
        require_custom(self.kind, "kind", self.arguments)
        if is_custom(self.kind):
            require_defaults(self, ("kind", "arguments", "channels", "levels"), IN_ARGUMENTS)
            return
        if self.depth > 1 and not self.part.repeats:
            kinds = either(name for name, neck in NECKS.items() if neck.repeats)
            raise ConfigError(f"depth: {self.kind} has one pass; a kind that repeats is {kinds}")
        if first == last and not self.part.one_level:
            kinds = either(name for name, neck in NECKS.items() if neck.one_level)
            raise ConfigError(f"levels: {self.kind} exchanges between levels and needs two or more; use kind: {kinds}")

    @property
    def part(self) -> NeckPart:
        """The line of the neck in the table; for a user's own, a line with all defaults."""
        return NECKS.get(self.kind, NeckPart(self.kind))
