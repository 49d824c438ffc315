"""Fast gradients of depthwise convolutions on a CPU.

oneDNN computes their forward pass, and gradients of 3x3 kernels without stride, with code made for them. The gradients
of larger kernels, and in bfloat16 those with a stride, are left to general code that is 10 to 80 times slower: of a
training step of EfficientNet-Lite they are two thirds. Here they are put together from the fast ones: a kernel of 3x3
or less at a time, and with a stride of 2 each parity of rows and columns for itself. The sums are the same ones, added
in another order.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TAPS = 3
"""The largest kernel, along each side, whose weight gradient oneDNN computes fast."""


def use_fast_depthwise(network: nn.Module) -> int:
    """Let the depthwise convolutions of `network` that have slow gradients on a CPU compute them fast; how many.

    Those are kernels of 3x3 with a stride of 2, and larger ones, odd and square, with strides of 1 or 2. What they
    compute forward, and their parameters, stay the same.
    """
    found = 0
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and (form := _form(module)) is not None:
            # Which torch's and our forward() call; torch declares it as a method.
            module._conv_forward = form  # type: ignore[method-assign,assignment]
            found += 1
    return found


def _form(conv: nn.Conv2d) -> _Depthwise | None:
    """How `conv` is computed here; None for a convolution that is left as it is."""
    kernel, stride, padding = conv.kernel_size, conv.stride, conv.padding
    depthwise = 1 < conv.groups == conv.in_channels == conv.out_channels
    if not depthwise or isinstance(padding, str) or conv.padding_mode != "zeros" or conv.dilation != (1, 1):
        return None
    if kernel[0] != kernel[1] or stride[0] != stride[1] or padding[0] != padding[1]:
        return None
    large = kernel[0] > _TAPS and kernel[0] % 2 == 1 and stride[0] <= 2
    return _Depthwise(stride[0], padding[0]) if large or (kernel[0] == 3 and stride[0] == 2) else None


@dataclass(frozen=True)
class _Depthwise:
    """The forward pass of a depthwise convolution with equal `stride` and `padding` on both axes."""

    stride: int
    padding: int

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        if x.device.type == "cpu" and channels_last and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            if torch.is_autocast_enabled("cpu"):
                dtype = torch.get_autocast_dtype("cpu")
                x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
            return _FastGradients.apply(x, weight, bias, self.stride, self.padding)
        return F.conv2d(x, weight, bias, self.stride, self.padding, groups=len(weight))


class _FastGradients(torch.autograd.Function):
    """A depthwise convolution of x [B, C, H, W], channels last, by a weight [C, 1, k, k]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, bias, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = input_gradient(gradient, x, weight, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            of_weight = weight_gradient(gradient, x, weight, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None, None


def input_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """The gradient [B, C, H, W] of the input `x`, for the `gradient` [B, C, h, w] of the output.

    Without a stride it is the convolution of `gradient` by the mirrored kernel. With a stride of 2, rows and columns of
    one parity meet only the taps of that parity, so each of the four parities is such a convolution.
    """
    kernel = weight.shape[-1]
    if stride == 1 and padding < kernel:
        return F.conv2d(gradient, weight.flip(2, 3), padding=kernel - 1 - padding, groups=len(weight))
    if stride == 1 or x.dtype == torch.float32:  # oneDNN is fast in float32
        return _gradients(gradient, x, weight, stride, padding, (True, False))[0]
    result = torch.empty_like(x, memory_format=torch.channels_last)
    for first_tap in product(range(2), range(2)):
        taps = weight[:, :, first_tap[0] :: 2, first_tap[1] :: 2]
        first, counts, pads = [], [], []
        for axis, tap in enumerate(first_tap):
            size, taps_here = x.shape[2 + axis], taps.shape[2 + axis]
            first.append((tap - padding) % 2)
            counts.append((size - first[axis] + 1) // 2)
            before = taps_here - 1 - (first[axis] + padding - tap) // 2
            pads.append((before, counts[axis] + taps_here - 1 - before - gradient.shape[2 + axis]))
        if 0 in counts:  # a picture of one row or column has no odd ones
            continue
        padded = F.pad(gradient, (*pads[1], *pads[0]))
        part = F.conv2d(padded, taps.flip(2, 3), groups=len(weight))
        result[:, :, first[0] :: 2, first[1] :: 2] = part
    return result


def weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """The gradient [C, 1, k, k] of `weight`, for the `gradient` [B, C, h, w] of the output.

    A kernel larger than 3x3 is cut into windows of 3x3 taps, those of each parity if there is a stride of 2.
    """
    kernel, (rows, columns) = weight.shape[-1], gradient.shape[2:]
    if kernel <= _TAPS:
        return _gradients(gradient, x, weight, stride, padding, (False, True))[1]
    x = F.pad(x, (padding,) * 4)
    result = torch.empty_like(weight)
    window = torch.empty_like(weight[:, :, :_TAPS, :_TAPS])
    for parity in product(range(stride), range(stride)):
        part, taps = (whole[:, :, parity[0] :: stride, parity[1] :: stride] for whole in (x, result))
        for top, left in product(*(range(0, size, _TAPS) for size in taps.shape[2:])):
            met = part[:, :, top : top + rows + _TAPS - 1, left : left + columns + _TAPS - 1]
            short = (rows + _TAPS - 1 - met.shape[2], columns + _TAPS - 1 - met.shape[3])
            if any(short):
                met = F.pad(met, (0, short[1], 0, short[0]))
            met = met.contiguous(memory_format=torch.channels_last)
            found = _gradients(gradient, met, window, 1, 0, (False, True))[1]
            here = taps[:, :, top : top + _TAPS, left : left + _TAPS]
            here.copy_(found[:, :, : here.shape[2], : here.shape[3]])
    return result


def _gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """torch's own gradients of the input and the weight, those that are wanted."""
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, (stride, stride), (padding, padding), (1, 1), False, (0, 0), len(weight),
        (*wanted, False),
    )  # fmt: skip
    return of_x, of_weight
