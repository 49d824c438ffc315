"""Convolution blocks. A block that has a simpler equal form at inference says so with one verb, `fuse()`."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.layers.fuse import require_eval

Norm = Literal["bn", "gn", "sepbn", "none"]
SHUFFLE_GROUPS = 4


def norm_layer(kind: Norm, channels: int, levels: int = 1) -> nn.Module:
    """`bn`, `gn` (groups of 8 channels, at most 32 groups: the papers' 32 at 256 channels), `sepbn` or nothing."""
    norms: dict[Norm, Callable[[], nn.Module]] = {
        "bn": lambda: nn.BatchNorm2d(channels),
        "gn": lambda: nn.GroupNorm(math.gcd(min(32, max(channels // 8, 1)), channels), channels),
        "sepbn": lambda: LevelNorm(channels, levels),
        "none": nn.Identity,
    }
    return norms[kind]()


def folded(kernel: Tensor, bias: Tensor | None, bn: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Kernel [c_out, ...] and bias [c_out] of the one convolution that equals a convolution and then `bn`."""
    gain, shift = affine(bn)
    return kernel * gain[:, None, None, None], shift if bias is None else bias * gain + shift


def affine(bn: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Factor and shift, [c] each: what a BatchNorm computes at inference."""
    assert bn.running_var is not None and bn.running_mean is not None
    gain = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    return gain, bn.bias - bn.running_mean * gain


def fold_batchnorms(network: nn.Module) -> None:
    """Fold every BatchNorm in `network` whose module registered a convolution directly before it.

    This is true of torchvision's networks, which register modules in the order in which they run.
    """
    for module in network.modules():
        for (conv_name, conv), (bn_name, bn) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(bn, _BatchNorm):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, bn))
                setattr(module, bn_name, nn.Identity())


class LevelNorm(nn.Module):
    """One BatchNorm for each pyramid level, behind a convolution that all levels share.

    Each level has activation statistics of its own, which a single BatchNorm would mix. A GroupNorm would not, but does
    not fold into the convolution. Lyu et al., "RTMDet", 2022, section 3.2; NAS-FPN's heads before it.
    """

    def __init__(self, channels: int, levels: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(levels))

    def forward(self, x: Tensor, level: int) -> Tensor:
        return self.norms[level](x)

    def fuse(self) -> nn.Module:
        """A factor and a shift for each level.

        One convolution for each level would compute the same faster, but the file would hold the towers once per level
        (ResNet-50, 256 channels, five levels: 94 MB instead of 19). ONNX Runtime and TensorRT fold the constant factor
        into a convolution for each level while they load the file.
        """
        require_eval(self)
        pairs = [affine(norm) for norm in self.norms if isinstance(norm, _BatchNorm)]
        return LevelAffine(torch.stack([gain for gain, _ in pairs]), torch.stack([shift for _, shift in pairs]))


class LevelAffine(nn.Module):
    """`x * gain + shift` with a gain and a shift [c] for each level."""

    gain: Tensor  # [L, c, 1, 1]
    shift: Tensor

    def __init__(self, gain: Tensor, shift: Tensor):
        super().__init__()
        self.register_buffer("gain", gain.detach()[..., None, None])
        self.register_buffer("shift", shift.detach()[..., None, None])

    def forward(self, x: Tensor, level: int) -> Tensor:
        return x * self.gain[level] + self.shift[level]


class ConvNorm(nn.Module):
    """Convolution with 'same' padding, norm, optional ReLU: [B, c_in, h, w] -> [B, c_out, ceil(h/s), ceil(w/s)].

    level: used by the norm `sepbn` only. bias: gives the convolution a bias beside its norm; without a norm it always
    has one.
    """

    def __init__(
        self, c_in: int, c_out: int, kernel: int = 3, stride: int = 1, norm: Norm = "bn", relu: bool = True,
        bias: bool = False, levels: int = 1, groups: int = 1,
    ):  # fmt: skip
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=bias or norm == "none")
        self.norm = norm_layer(norm, c_out, levels)
        self.act = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor, level: int = 0) -> Tensor:
        x = self.conv(x)
        return self.act(self.norm(x, level) if isinstance(self.norm, (LevelNorm, LevelAffine)) else self.norm(x))

    def fuse(self) -> nn.Module:
        """This block with its BatchNorm folded into the convolution; a GroupNorm stays."""
        require_eval(self)
        if isinstance(self.norm, _BatchNorm):
            self.conv, self.norm = fuse_conv_bn_eval(self.conv, self.norm), nn.Identity()
        elif isinstance(self.norm, LevelNorm):
            self.norm = self.norm.fuse()
        return self


class DepthwiseConv(ConvNorm):
    """Depthwise 3x3, then `ConvNorm` with 1x1: about a ninth of a 3x3 convolution's work (Chollet, "Xception", 2017).

    No norm or ReLU between the two, as in EfficientDet, so that the norm at the end folds into the 1x1.
    """

    def __init__(
        self, c_in: int, c_out: int, norm: Norm = "bn", relu: bool = True, bias: bool = False, levels: int = 1
    ):
        super().__init__(c_in, c_out, 1, norm=norm, relu=relu, bias=bias, levels=levels)
        self.depthwise = nn.Conv2d(c_in, c_in, 3, padding=1, groups=c_in, bias=False)

    def forward(self, x: Tensor, level: int = 0) -> Tensor:
        return super().forward(self.depthwise(x), level)


class ShuffleConv(ConvNorm):
    """`ConvNorm` with 3x3 in four groups, a quarter of a 3x3 convolution's work, then a channel shuffle.

    After the shuffle each group of the next block reads all groups of this one (Zhang et al., "ShuffleNet", 2018).
    """

    def __init__(self, c_in: int, c_out: int, norm: Norm = "bn", bias: bool = False, levels: int = 1):
        super().__init__(c_in, c_out, 3, norm=norm, bias=bias, levels=levels, groups=SHUFFLE_GROUPS)

    def forward(self, x: Tensor, level: int = 0) -> Tensor:
        x = super().forward(x, level)
        return x.unflatten(1, (SHUFFLE_GROUPS, -1)).transpose(1, 2).flatten(1, 2)


class ImplicitConv(nn.Conv2d):
    """A prediction convolution with YOLOR's implicit knowledge: `conv(x + add) * mul`, `add` a learnable number for
    each input channel and `mul` for each output channel (Wang et al., "You Only Learn One Representation", 2021).

    `add` is added to the padding too. So it contributes the same sum at every cell, borders included, and folds into
    the bias.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int, padding: int = 0):
        super().__init__(c_in, c_out, kernel, padding=padding)
        self.kernel, self.border = kernel, padding
        self.implicit_add = nn.Parameter(torch.empty(c_in).normal_(std=0.02))
        self.implicit_mul = nn.Parameter(torch.empty(c_out).normal_(mean=1.0, std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        bias = self._bias_with_add()
        return F.conv2d(x, self.weight, bias, padding=self.border) * self.implicit_mul[:, None, None]

    def fuse(self) -> nn.Module:
        """One convolution that computes the same."""
        require_eval(self)
        conv = nn.Conv2d(self.in_channels, self.out_channels, self.kernel, padding=self.border)
        conv.weight = nn.Parameter((self.weight * self.implicit_mul[:, None, None, None]).detach())
        conv.bias = nn.Parameter((self._bias_with_add() * self.implicit_mul).detach())
        return conv

    def _bias_with_add(self) -> Tensor:
        assert self.bias is not None
        # Not a matrix product: autocast would compute that in half precision.
        return self.bias + (self.weight.sum(dim=(2, 3)) * self.implicit_add).sum(dim=1)
