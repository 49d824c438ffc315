"""Convolutions with int8 weights, in training form and folded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.fuse import require_eval
from models.quant.fake_quant import HIGH, LOW, OPSET, SMALLEST, integers_of, keep_positive

_LARGEST_BIAS = 2.0**30  # steps, within an int32


def weight_scale(weight: Tensor) -> Tensor:
    """Scale [c_out, 1, 1, 1] of a weight [c_out, ...]: the largest magnitude of each channel becomes 127."""
    return (weight.detach().abs().amax(dim=(1, 2, 3), keepdim=True).float() / HIGH).clamp(min=SMALLEST)


class QuantConv2d(nn.Conv2d):
    """A convolution whose weight is rounded to int8 at every call. A `FakeQuant` before it rounds its input.

    Called with the gain and the shift [c_out, 1, 1] of a pyramid level, it computes the convolution and that affine in
    one. All levels share the int8 weight; the gain is multiplied into its scale.
    """

    def __init__(self, conv: nn.Conv2d):
        with torch.device("meta"):  # no memory for weights, which are those of `conv`
            super().__init__(conv.in_channels, conv.out_channels, 1, groups=conv.groups, padding_mode=conv.padding_mode)
        for name in ("kernel_size", "stride", "padding", "dilation"):
            setattr(self, name, getattr(conv, name))
        self._reversed_padding_repeated_twice = conv._reversed_padding_repeated_twice
        self.weight, self.bias = conv.weight, conv.bias
        self.enabled = True

    def forward(self, x: Tensor, gain: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        weight, bias, scale = self.weight, self.bias, None
        if self.enabled:
            scale = weight_scale(weight)
            weight = integers_of(weight, scale)
        if gain is not None and shift is not None:
            scale = gain[:, None] if scale is None else scale * gain[:, None]
            bias = _affine_bias(bias, gain, shift)
        return self._conv_forward(x, weight if scale is None else weight * scale, bias)

    def fuse(self) -> nn.Module:
        """The same convolution with its weight as int8."""
        require_eval(self)
        return IntConv2d(self) if self.enabled else self


def _affine_bias(bias: Tensor | None, gain: Tensor, shift: Tensor) -> Tensor:
    return shift.flatten() if bias is None else bias * gain.flatten() + shift.flatten()


@dataclass(frozen=True)
class Use:
    """One of the places where a convolution is called.

    gain, shift: [c_out, 1, 1], of a pyramid level. input_scale: scale of the rounded input, given where the bias
    becomes int32 too.
    """

    gain: Tensor | None = None
    shift: Tensor | None = None
    input_scale: Tensor | None = None


class IntConv2d(nn.Module):
    """A convolution with an int8 weight [c_out, c_in / groups, kh, kw] and a scale for each output channel.

    A convolution that pyramid levels share has one weight, and a scale and a bias for each use. Engines require
    positive scales, so the sign of a gain goes into the weight; uses with the same signs share one copy of it.
    """

    def __init__(self, conv: QuantConv2d, uses: Sequence[Use] = (Use(),)):
        super().__init__()
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        weight, common = conv.weight.detach().float(), weight_scale(conv.weight)
        ones, zeros = torch.ones_like(common).flatten(), torch.zeros_like(common).flatten()
        gains = [ones if use.gain is None else use.gain.detach().flatten() for use in uses]
        biases: list[Tensor | None] = []
        for use in uses:
            bias = None if conv.bias is None else conv.bias.detach()
            biases.append(
                bias
                if use.gain is None or use.shift is None
                else _affine_bias(bias, use.gain.detach(), use.shift.detach())
            )
        for use, gain, bias in zip(uses, gains, biases, strict=True):
            if use.input_scale is not None and bias is not None:
                step = (use.input_scale * gain.abs()).clamp(min=SMALLEST)
                common = torch.maximum(common, (bias.abs() / (step * _LARGEST_BIAS))[:, None, None, None])
        steps = (weight / common).round().clamp(LOW, HIGH).to(torch.int8)
        self.int_bias = any(use.input_scale is not None for use in uses)
        copies: list[Tensor] = []
        self.copy_of: list[int] = []
        for i, (use, gain, bias) in enumerate(zip(uses, gains, biases, strict=True)):
            signed = torch.where(gain[:, None, None, None] < 0, -steps, steps)
            same = [j for j, copy in enumerate(copies) if torch.equal(copy, signed)]
            if not same:
                self.register_buffer(f"steps_{len(copies)}", signed)
                copies.append(signed)
            self.copy_of.append(same[0] if same else len(copies) - 1)
            scale = (common.flatten() * gain.abs()).clamp(min=SMALLEST)
            self.register_buffer(f"scale_{i}", scale)
            if use.input_scale is not None:
                step = scale * use.input_scale
                bias = (zeros if bias is None else bias / step).round().to(torch.int32)
                self.register_buffer(f"bias_step_{i}", step)
            self.register_buffer(f"bias_{i}", bias)

    @property
    def steps(self) -> Tensor:
        """The int8 weight of the first use."""
        return self.get_buffer("steps_0")

    @property
    def scale(self) -> Tensor:
        """The scale [c_out] of the first use."""
        return self.get_buffer("scale_0")

    def forward(self, x: Tensor, use: int = 0) -> Tensor:
        weight = self._float(f"steps_{self.copy_of[use]}", f"scale_{use}")
        bias = getattr(self, f"bias_{use}")
        if self.int_bias:
            bias = self._float(f"bias_{use}", f"bias_step_{use}")
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def _float(self, steps_name: str, scale_name: str) -> Tensor:
        steps, scale = self.get_buffer(steps_name), self.get_buffer(scale_name)
        if torch.compiler.is_exporting():
            zeros = torch.zeros(len(scale), dtype=steps.dtype)
            return torch.onnx.ops.symbolic(
                "DequantizeLinear", (steps, scale, zeros), {"axis": 0}, dtype=scale.dtype, shape=steps.shape,
                version=OPSET,
            )  # fmt: skip
        return steps.to(scale.dtype) * scale.view(-1, *[1] * (steps.ndim - 1))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> IntConv2d:
        super()._apply(fn, recurse)
        for name, buffer in self.named_buffers():
            if name.startswith("scale_"):
                keep_positive(buffer)
        return self
