"""Numbers rounded to what an int8 can say, in float arithmetic that equals ONNX's to the last bit.

Symmetric, as TensorRT has it: activations with one scale for a tensor, weights with one for each output channel.
The gradient is that of the identity inside the range and zero beyond it (Jacob et al., "Quantization and Training of
Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.fuse import require_eval
from models.quant.ranges import Histogram, Method

LOW, HIGH = -128, 127
_SMALLEST = 1e-12  # a scale, for channels and tensors of zeros
_OPSET = 19  # the version of QuantizeLinear and DequantizeLinear that is meant


class FakeQuant(nn.Module):
    """A tensor as int8 would have it: `round(clamp(x / scale)) * scale`. [...] -> float32 [...].

    `observing`: the input passes as it is and is counted. `tracking`: in train mode the range follows the batches'
    largest magnitudes slowly, as QAT does until its ranges are frozen. `enabled`: false lets everything pass.
    """

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.enabled = True
        self.observing = False
        self.tracking = False
        self.histogram: Histogram | None = None

    def observe(self) -> None:
        """Start counting, from nothing."""
        self.observing, self.histogram = True, Histogram()

    def settle(self, method: Method, percentile: float = 99.99) -> None:
        """Choose the range from what was counted since `observe`, and stop counting. Other methods may be asked for
        afterwards: the counts stay until the next `observe`.
        """
        assert self.histogram is not None, "observe() comes first"
        self.observing = False
        self.scale.fill_(max(self.histogram.range(method, percentile) / HIGH, _SMALLEST))

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return x
        if torch.compiler.is_exporting():
            return _exported(x, self.scale)
        if self.observing:
            assert self.histogram is not None
            self.histogram.add(x)
            return x
        if self.tracking and self.training:
            with torch.no_grad():
                self.scale.lerp_((x.detach().abs().amax().float() / HIGH).clamp(min=_SMALLEST), 0.01)
        return rounded(x, self.scale)


def rounded(x: Tensor, scale: Tensor) -> Tensor:
    """`x` in float32 as int8 with `scale` says it; divided, not multiplied by 1 / scale, as QuantizeLinear does."""
    steps = (x.float() / scale).clamp(LOW, HIGH)
    # The added difference has no gradient and is exact, so that the sum is the whole number itself.
    return (steps + (steps.round() - steps).detach()) * scale


def _exported(x: Tensor, scale: Tensor) -> Tensor:
    """The same as a pair of ONNX nodes."""
    zero = torch.zeros((), dtype=torch.int8)
    steps = torch.onnx.ops.symbolic(
        "QuantizeLinear", (x.float(), scale, zero), dtype=torch.int8, shape=x.shape, version=_OPSET
    )
    return torch.onnx.ops.symbolic(
        "DequantizeLinear", (steps, scale, zero), dtype=torch.float32, shape=x.shape, version=_OPSET
    )


def weight_scale(weight: Tensor) -> Tensor:
    """[c_out, 1, 1, 1] of a weight [c_out, ...]: the largest magnitude of each channel is 127."""
    return (weight.detach().abs().amax(dim=(1, 2, 3), keepdim=True).float() / HIGH).clamp(min=_SMALLEST)


class QuantConv2d(nn.Conv2d):
    """A convolution whose weight is rounded to int8 at every use. Its input is the business of a `FakeQuant`."""

    def __init__(self, conv: nn.Conv2d):
        with torch.device("meta"):  # shapes only; the tensors are those of `conv`
            super().__init__(conv.in_channels, conv.out_channels, 1, groups=conv.groups, padding_mode=conv.padding_mode)
        for name in ("kernel_size", "stride", "padding", "dilation"):
            setattr(self, name, getattr(conv, name))
        self._reversed_padding_repeated_twice = conv._reversed_padding_repeated_twice
        self.weight, self.bias = conv.weight, conv.bias
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        weight = rounded(self.weight, weight_scale(self.weight)) if self.enabled else self.weight
        return self._conv_forward(x, weight, self.bias)

    def fuse(self) -> nn.Module:
        """The same convolution with its weight as int8."""
        require_eval(self)
        return IntConv2d(self) if self.enabled else self


class IntConv2d(nn.Module):
    """A convolution with an int8 weight [c_out, c_in / groups, kh, kw] and a scale for each output channel."""

    steps: Tensor
    scale: Tensor

    def __init__(self, conv: QuantConv2d):
        super().__init__()
        scale = weight_scale(conv.weight)
        self.register_buffer("steps", (conv.weight.detach().float() / scale).round().clamp(LOW, HIGH).to(torch.int8))
        self.register_buffer("scale", scale.flatten())
        self.bias = conv.bias
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            zeros = torch.zeros(len(self.scale), dtype=torch.int8)
            weight = torch.onnx.ops.symbolic(
                "DequantizeLinear", (self.steps, self.scale, zeros), {"axis": 0}, dtype=torch.float32,
                shape=self.steps.shape, version=_OPSET,
            )  # fmt: skip
        else:
            weight = self.steps.float() * self.scale[:, None, None, None]
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
