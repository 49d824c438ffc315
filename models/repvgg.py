"""RepVGG: Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021.

In training a block is 3x3 + 1x1 + identity, each with its own BatchNorm; deployed it is one 3x3 convolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RepVGGBlock(nn.Module):
    """[B, c_in, h, w] -> [B, c_out, ceil(h/s), ceil(w/s)], then ReLU."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1):
        super().__init__()
        self.stride = stride
        self.conv3 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.conv1 = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.bn0 = nn.BatchNorm2d(c_out) if c_in == c_out and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        # Striding by slicing, not in the convolution: with fewer than 16 channels in NHWC, oneDNN's gradient of a
        # strided 1x1 convolution writes past its buffer and corrupts the heap (oneDNN issue 6035).
        points = x[..., :: self.stride, :: self.stride]
        y = self.bn3(self.conv3(x)) + self.bn1(self.conv1(points))
        if self.bn0 is not None:
            y = y + self.bn0(x)
        return F.relu(y)

    def fuse(self) -> nn.Module:
        """One 3x3 convolution and ReLU that computes the same (section 3.3)."""
        c_out, c_in = self.conv3.weight.shape[:2]
        kernel, bias = _folded(self.conv3.weight, self.bn3)
        kernel1, bias1 = _folded(F.pad(self.conv1.weight, [1, 1, 1, 1]), self.bn1)
        kernel, bias = kernel + kernel1, bias + bias1
        if self.bn0 is not None:
            identity = F.pad(torch.eye(c_out, dtype=kernel.dtype, device=kernel.device)[..., None, None], [1, 1, 1, 1])
            kernel0, bias0 = _folded(identity, self.bn0)
            kernel, bias = kernel + kernel0, bias + bias0
        conv = nn.Conv2d(c_in, c_out, 3, self.stride, 1, device=kernel.device, dtype=kernel.dtype)
        conv.weight.data, conv.bias.data = kernel.detach(), bias.detach()  # type: ignore[union-attr]
        return nn.Sequential(conv, nn.ReLU(inplace=True))


def _folded(kernel: Tensor, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The kernel and bias of a convolution followed by `bn` at inference."""
    assert bn.running_var is not None and bn.running_mean is not None
    gain = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    return kernel * gain[:, None, None, None], bn.bias - bn.running_mean * gain


class RepVGG(nn.Module):
    """Features C2..C5 at strides 4, 8, 16, 32 of images [B, 3, H, W]."""

    def __init__(self, blocks: tuple[int, int, int, int], channels: tuple[int, int, int, int, int]):
        super().__init__()
        self.channels = channels[1:]
        self.stem = RepVGGBlock(3, channels[0], stride=2)
        self.stages = nn.ModuleList()
        for count, c_in, c_out in zip(blocks, channels[:-1], channels[1:], strict=True):
            stage = [RepVGGBlock(c_in, c_out, stride=2)]
            stage += [RepVGGBlock(c_out, c_out) for _ in range(count - 1)]
            self.stages.append(nn.Sequential(*stage))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [self.stem(x)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features[1:]
