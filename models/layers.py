"""Convolution blocks. A block that has a simpler equal form at inference says so with one verb, `fuse()`."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Norm = Literal["bn", "gn", "none"]


def norm_layer(kind: Norm, channels: int) -> nn.Module:
    """`bn`, `gn` (groups of 8 channels, at most 32 groups: the papers' 32 at 256 channels) or nothing."""
    if kind == "bn":
        return nn.BatchNorm2d(channels)
    if kind == "gn":
        return nn.GroupNorm(math.gcd(min(32, max(channels // 8, 1)), channels), channels)
    return nn.Identity()


class ConvNorm(nn.Module):
    """Convolution with 'same' padding, norm, optional ReLU: [B, c_in, h, w] -> [B, c_out, ceil(h/s), ceil(w/s)]."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, norm: Norm = "bn", relu: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=norm == "none")
        self.norm = norm_layer(norm, c_out)
        self.act = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))

    def fuse(self) -> nn.Module:
        """The same block with a BatchNorm folded into the convolution; other norms stay."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv, self.norm = fuse_conv_bn_eval(self.conv, self.norm), nn.Identity()
        return self
