"""Blocks that are several branches in training and one 3x3 convolution when deployed.

RepVGG: Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021. QARepVGG: Chu et al., "Make RepVGG
Greater Again: A Quantization-Aware Approach", 2022. RepConv without its identity: Wang et al., "YOLOv7", 2022.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.blocks import folded
from models.layers.fuse import require_eval


class RepConv(nn.Module):
    """3x3 + 1x1 + identity, each with its own BatchNorm: [B, c_in, h, w] -> [B, c_out, ceil(h/s), ceil(w/s)], ReLU.

    This is RepVGG's block. The identity exists only where input and output have one shape; `identity=False` leaves it
    out, as YOLOv7 does beside a residual or a concatenation.
    """

    def __init__(self, c_in: int, c_out: int, stride: int = 1, identity: bool = True):
        super().__init__()
        self.stride = stride
        self.conv3 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.conv1 = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.bn0 = nn.BatchNorm2d(c_out) if identity and c_in == c_out and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn3(self.conv3(x)) + self.bn1(self.conv1(_strided(x, self.stride)))
        if self.bn0 is not None:
            y = y + self.bn0(x)
        return F.relu(y)

    def fuse(self) -> nn.Module:
        """One 3x3 convolution and ReLU that computes the same (RepVGG, section 3.3)."""
        require_eval(self)
        kernel, bias = folded(self.conv3.weight, None, self.bn3)
        kernel1, bias1 = folded(_as_3x3(self.conv1.weight), None, self.bn1)
        kernel, bias = kernel + kernel1, bias + bias1
        if self.bn0 is not None:
            kernel0, bias0 = folded(_identity_3x3(kernel), None, self.bn0)
            kernel, bias = kernel + kernel0, bias + bias0
        return _plain(kernel, bias, self.stride)


class QARepVGGBlock(nn.Module):
    """(3x3 with BatchNorm + 1x1 + identity), BatchNorm, ReLU: shapes as `RepConv`.

    The 1x1 and the identity have no BatchNorms, so their folded weights have no outliers and the deployed convolution
    can be quantized to 8 bits. The BatchNorm behind the sum keeps training stable (section 3.3 of the paper).
    """

    def __init__(self, c_in: int, c_out: int, stride: int = 1):
        super().__init__()
        self.stride, self.identity = stride, c_in == c_out and stride == 1
        self.conv3 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.conv1 = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.bn = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn3(self.conv3(x)) + self.conv1(_strided(x, self.stride))
        return F.relu(self.bn(y + x if self.identity else y))

    def fuse(self) -> nn.Module:
        """One 3x3 convolution and ReLU that computes the same."""
        require_eval(self)
        kernel, bias = folded(self.conv3.weight, None, self.bn3)
        kernel = kernel + _as_3x3(self.conv1.weight)
        if self.identity:
            kernel = kernel + _identity_3x3(kernel)
        return _plain(*folded(kernel, bias, self.bn), self.stride)


def _strided(x: Tensor, stride: int) -> Tensor:
    """The pixels of `x` that a 1x1 convolution of this stride reads.

    It is a slice and not the convolution's own stride: with fewer than 16 channels in NHWC, oneDNN's gradient of a
    strided 1x1 convolution writes past its buffer and corrupts the heap (oneDNN issue 6035).
    """
    return x[..., ::stride, ::stride]


def _as_3x3(kernel: Tensor) -> Tensor:
    return F.pad(kernel, [1, 1, 1, 1])


def _identity_3x3(kernel: Tensor) -> Tensor:
    """The 3x3 kernel that copies its input, with the shape, dtype and device of `kernel` [c, c, 3, 3]."""
    return _as_3x3(torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)[..., None, None])


def _plain(kernel: Tensor, bias: Tensor, stride: int) -> nn.Module:
    c_out, c_in = kernel.shape[:2]
    conv = nn.Conv2d(c_in, c_out, 3, stride, 1, device=kernel.device, dtype=kernel.dtype)
    conv.weight, conv.bias = nn.Parameter(kernel.detach()), nn.Parameter(bias.detach())
    return nn.Sequential(conv, nn.ReLU(inplace=True))
