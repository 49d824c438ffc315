"""The head's towers: a few blocks of one kind, shared by all pyramid levels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.config.model import HeadConfig
from models.layers.blocks import ConvNorm, DepthwiseConv, ShuffleConv
from models.layers.reparam import RepConv


class Tower(nn.ModuleList):
    """[B, widths[0], h, w] of a level -> [B, widths[-1], h, w]."""

    def __init__(self, config: HeadConfig, widths: Sequence[int], levels: int):
        super().__init__(_block(config, a, b, levels) for a, b in zip(widths[:-1], widths[1:], strict=True))

    def forward(self, x: Tensor, level: int) -> Tensor:
        for block in self:
            x = block(x, level) if isinstance(block, ConvNorm) else block(x)
        return x


def _block(config: HeadConfig, c_in: int, c_out: int, levels: int) -> nn.Module:
    if config.block == "repconv":
        return RepConv(c_in, c_out)
    if config.block == "dw":
        return DepthwiseConv(c_in, c_out, config.norm, bias=config.conv_bias, levels=levels)
    if config.block == "shuffle":
        return ShuffleConv(c_in, c_out, config.norm, bias=config.conv_bias, levels=levels)
    return ConvNorm(c_in, c_out, 3, norm=config.norm, bias=config.conv_bias, levels=levels)
