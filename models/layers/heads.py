"""The head shared by all pyramid levels: two towers, three predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from models.config.choices import HEAD_BLOCKS
from models.config.model import HeadConfig, ModelConfig
from models.layers.blocks import ConvNorm, ImplicitConv
from models.layers.distribution import DistributionQuality


class Tower(nn.ModuleList):
    """`head.depth` blocks that all levels share: [B, widths[0], h, w] of a level -> [B, widths[-1], h, w]."""

    def __init__(self, config: HeadConfig, widths: Sequence[int], levels: int):
        part = HEAD_BLOCKS[config.block]
        norms = {} if part.own_norms else {"norm": config.norm, "bias": config.conv_bias, "levels": levels}
        super().__init__(part.load()(c_in, c_out, **norms) for c_in, c_out in pairwise(widths))

    def forward(self, x: Tensor, level: int) -> Tensor:
        for block in self:
            x = block(x, level) if isinstance(block, ConvNorm) else block(x)
        return x


class Head(nn.Module):
    """L levels [B, c, h, w] -> logits [B, N, C], box codes [B, N, `box.channels`], quality logits [B, N] or None."""

    def __init__(self, config: ModelConfig, levels: int):
        super().__init__()
        c_in, c = config.neck.channels, config.head.channels or config.neck.channels
        widths = [c_in] + [c] * config.head.depth

        def prediction(channels: int) -> nn.Conv2d:
            return (ImplicitConv if config.head.implicit else nn.Conv2d)(widths[-1], channels, 3, padding=1)

        self.classes, self.box_channels = len(config.classes), config.box.channels
        anchors = config.anchors.per_cell
        self.cls_tower, self.box_tower = (Tower(config.head, widths, levels) for _ in range(2))
        self.cls = prediction(anchors * self.classes)
        self.box = prediction(anchors * self.box_channels)
        self.quality_on_cls = config.head.quality_on == "cls"
        self.quality: nn.Conv2d | DistributionQuality | None = None
        if config.quality == "distribution":
            self.quality = DistributionQuality(config.box.bins)
        elif config.quality != "none":
            self.quality = prediction(anchors)
        # One learnable factor per level lets a shared convolution serve objects of all sizes (FCOS, 3.2).
        self.scales = nn.Parameter(torch.ones(levels), requires_grad=config.head.level_scales)
        for m in self.modules():
            if isinstance(m, (nn.Conv2d, nn.Linear)):
                nn.init.normal_(m.weight, std=0.01)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)
        assert self.cls.bias is not None
        nn.init.constant_(self.cls.bias, -math.log((1 - config.head.prior) / config.head.prior))

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        logits, boxes, quality = [], [], []
        for level, x in enumerate(features):
            cls_features, box_features = self.cls_tower(x, level), self.box_tower(x, level)
            logits.append(_flat(self.cls(cls_features), self.classes))
            boxes.append(_flat(self.box(box_features) * self.scales[level], self.box_channels))
            if self.quality is not None and not isinstance(self.quality, DistributionQuality):
                quality.append(_flat(self.quality(cls_features if self.quality_on_cls else box_features), 1))
        codes = torch.cat(boxes, 1)
        if isinstance(self.quality, DistributionQuality):
            return torch.cat(logits, 1), codes, self.quality(codes)
        return torch.cat(logits, 1), codes, torch.cat(quality, 1).squeeze(-1) if quality else None


def _flat(x: Tensor, channels: int) -> Tensor:
    """[B, A * channels, h, w] -> [B, h * w * A, channels]: cells row by row, anchors within a cell."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, channels)
