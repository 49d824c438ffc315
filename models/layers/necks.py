"""Necks: backbone features C2..C5 -> pyramid levels, each [B, channels, h, w], level l at stride 2**l.

A dilated backbone ends with C4 instead; the levels above a backbone's last are made by convolutions of stride 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config.model import NeckConfig
from models.config.network import is_custom
from models.custom.find import NECK, custom_part
from models.layers.blocks import ConvNorm, DepthwiseConv
from models.layers.fuse import require_eval
from models.layers.reparam import RepConv


def build_neck(config: NeckConfig, c_in: Sequence[int]) -> nn.Module:
    """The neck that `config.kind` names, for features of `c_in` channels, the first at stride 4.

    Raises `ConfigError` where it is a user's own and cannot be made.
    """
    if is_custom(config.kind):
        return custom_part(NECK, config.kind, config.arguments)(tuple(c_in), config.channels, config.levels)
    neck: nn.Module = config.part.load()(config, c_in)
    return neck


class Pyramid(nn.Module):
    """The start and the end of every neck: 1x1 convolutions to one width, and the levels above the backbone's last."""

    def __init__(self, config: NeckConfig, c_in: Sequence[int]):
        super().__init__()
        self.first, self.last = config.levels
        self.top = min(1 + len(c_in), self.last)
        self.p6_from_c5, self.p7_relu = config.p6_from == "c5", config.p7_relu
        c = config.channels
        widths = c_in[self.first - 2 : self.top - 1]
        self.laterals = nn.ModuleList(ConvNorm(width, c, 1, norm=config.norm, relu=False) for width in widths)
        self.extra = nn.ModuleList()
        for level in range(self.top + 1, self.last + 1):
            source = c_in[-1] if level == self.top + 1 and self.p6_from_c5 else c
            self.extra.append(ConvNorm(source, c, 3, stride=2, norm=config.norm, relu=False))
        self._initialize()

    def _initialize(self) -> None:
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_uniform_(m.weight, a=1)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

    def lateral(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Levels `first`..`top` at one width."""
        used = features[self.first - 2 : self.top - 1]
        return [lateral(f) for lateral, f in zip(self.laterals, used, strict=True)]

    def extended(self, levels: list[Tensor], features: Sequence[Tensor]) -> list[Tensor]:
        """`levels`, which end at `top`, continued up to `last`."""
        for level, extra in enumerate(self.extra, start=self.top + 1):
            source = features[-1] if level == self.top + 1 and self.p6_from_c5 else levels[-1]
            levels = [*levels, extra(F.relu(source) if level == 7 and self.p7_relu else source)]
        return levels


class FPN(Pyramid):
    """Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017; P6 and P7 from RetinaNet, section 4."""

    def __init__(self, config: NeckConfig, c_in: Sequence[int]):
        super().__init__(config, c_in)
        c = config.channels
        self.outputs = nn.ModuleList(ConvNorm(c, c, 3, norm=config.norm, relu=False) for _ in self.laterals)
        self._initialize()

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        return self.extended(self.top_down(features), features)

    def top_down(self, features: Sequence[Tensor]) -> list[Tensor]:
        merged = self.lateral(features)
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + _enlarged(merged[i], merged[i - 1])
        return [output(m) for output, m in zip(self.outputs, merged, strict=True)]


class PAFPN(FPN):
    """FPN and a way back up: Liu et al., "Path Aggregation Network for Instance Segmentation", CVPR 2018."""

    def __init__(self, config: NeckConfig, c_in: Sequence[int]):
        super().__init__(config, c_in)
        c, above = config.channels, range(len(self.laterals) - 1)
        self.downs = nn.ModuleList(ConvNorm(c, c, 3, stride=2, norm=config.norm, relu=False) for _ in above)
        self.up_outputs = nn.ModuleList(ConvNorm(c, c, 3, norm=config.norm, relu=False) for _ in above)
        self._initialize()

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        merged = self.top_down(features)
        for i, down in enumerate(self.downs):
            merged[i + 1] = merged[i + 1] + down(merged[i])
        outputs = [output(m) for output, m in zip(self.up_outputs, merged[1:], strict=True)]
        return self.extended([merged[0], *outputs], features)


class RepPAN(Pyramid):
    """PAFPN with concatenations and blocks that deploy to plain 3x3 convolutions: Li et al., "YOLOv6", 2022.

    Upsampling takes the nearest pixel, which works for every level size on every backend; the authors have a
    transposed convolution.
    """

    def __init__(self, config: NeckConfig, c_in: Sequence[int]):
        super().__init__(config, c_in)
        c, above = config.channels, range(len(self.laterals) - 1)

        def node() -> nn.Sequential:
            # Only the first block's input has another width; it has no identity branch.
            return nn.Sequential(*(RepConv(2 * c if i == 0 else c, c) for i in range(config.depth)))

        self.down_nodes = nn.ModuleList(node() for _ in above)
        self.downs = nn.ModuleList(ConvNorm(c, c, 3, stride=2, norm="bn") for _ in above)
        self.up_nodes = nn.ModuleList(node() for _ in above)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        levels = self.lateral(features)
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = self.down_nodes[i - 1](torch.cat([levels[i - 1], _enlarged(levels[i], levels[i - 1])], 1))
        for i, (down, node) in enumerate(zip(self.downs, self.up_nodes, strict=True)):
            levels[i + 1] = node(torch.cat([levels[i + 1], down(levels[i])], 1))
        return self.extended(levels, features)


class BiFPN(Pyramid):
    """Tan et al., "EfficientDet", CVPR 2020: top-down and bottom-up over all levels, `depth` times, sums weighted.

    The levels above the backbone's are those of the other necks. ReLU where the authors have SiLU: an 8-bit engine
    fuses it.
    """

    def __init__(self, config: NeckConfig, c_in: Sequence[int]):
        super().__init__(config, c_in)
        levels = self.last - self.first + 1
        self.passes = nn.ModuleList(_BiFPNPass(config, levels) for _ in range(config.depth))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        levels = self.extended(self.lateral(features), features)
        for down_and_up in self.passes:
            levels = down_and_up(levels)
        return levels


class _BiFPNPass(nn.Module):
    """Once top-down and once bottom-up (figure 2d): L levels -> L levels."""

    def __init__(self, config: NeckConfig, levels: int):
        super().__init__()
        c = config.channels

        def convolutions() -> nn.ModuleList:
            return nn.ModuleList(DepthwiseConv(c, c, config.norm, relu=False) for _ in range(levels - 1))

        self.down_sums = nn.ModuleList(WeightedSum(2) for _ in range(levels - 1))
        self.down_convs = convolutions()
        # The last level has no top-down sum, so its bottom-up sum has one term less.
        self.up_sums = nn.ModuleList(WeightedSum(3 if i < levels - 2 else 2) for i in range(levels - 1))
        self.up_convs = convolutions()

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        down = list(inputs)
        for i in range(len(down) - 2, -1, -1):
            merged = self.down_sums[i]([inputs[i], _enlarged(down[i + 1], inputs[i])])
            down[i] = self.down_convs[i](F.relu(merged))
        up = down[:1]
        for i, (weigh, conv) in enumerate(zip(self.up_sums, self.up_convs, strict=True), start=1):
            same_level = [inputs[i], down[i]] if i < len(inputs) - 1 else [inputs[i]]
            up.append(conv(F.relu(weigh([*same_level, F.max_pool2d(up[-1], 3, 2, 1)]))))
        return up


class WeightedSum(nn.Module):
    """Fast normalized fusion (section 3.3): sum of w_i x_i with w_i = relu(v_i) / (sum of relu(v) + 1e-4)."""

    def __init__(self, count: int):
        super().__init__()
        self.weights = nn.Parameter(torch.ones(count))

    def normalized(self) -> Tensor:
        positive = F.relu(self.weights)
        return positive / (positive.sum() + 1e-4)

    def forward(self, terms: Sequence[Tensor]) -> Tensor:
        return _weighted(terms, self.normalized())

    def fuse(self) -> nn.Module:
        """The same sum with constant weights."""
        require_eval(self)
        return ConstantSum(tuple(self.normalized().tolist()))


class ConstantSum(nn.Module):
    """Sum of `weights[i] * terms[i]`."""

    def __init__(self, weights: tuple[float, ...]):
        super().__init__()
        self.weights = weights

    def forward(self, terms: Sequence[Tensor]) -> Tensor:
        return _weighted(terms, self.weights)


def _weighted(terms: Sequence[Tensor], weights: Tensor | Sequence[float]) -> Tensor:
    total = terms[0] * weights[0]
    for weight, term in zip(weights[1:], terms[1:], strict=True):
        total = total + term * weight
    return total


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    """`x` upsampled to the height and width of `like`; not by a factor of 2, because odd sizes are rounded up."""
    return F.interpolate(x, size=like.shape[-2:], mode="nearest")
