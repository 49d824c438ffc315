"""Fake quantization: numbers rounded to those that int8 can hold, in float arithmetic bit-identical to ONNX's.

It is symmetric, as in TensorRT: activations have one scale for each tensor, weights one for each output channel
(`models.quant.convolution`). The gradient is that of the identity inside the range and zero beyond it (Jacob et al.,
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.quant.ranges import Histogram

LOW, HIGH = -128, 127
SMALLEST = 1e-12  # the smallest scale, for channels and tensors of zeros
_SMALLEST_HALF = 2.0**-24  # the smallest scale in float16, where SMALLEST would become zero
OPSET = 19  # opset of QuantizeLinear and DequantizeLinear in the graph


class FakeQuant(nn.Module):
    """`round(clamp(x / scale)) * scale`, [...] -> [...]: the numbers that int8 would hold, in the dtype of `scale`.

    That is float32, or float16 after `half()`.
    enabled: False passes the input unchanged.
    observing: the input is passed unchanged and added to `histogram`.
    tracking: in train mode the range slowly follows the largest magnitude of the batches; QAT sets it until it freezes
        the ranges.
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
        """Start observing, with an empty histogram."""
        self.observing, self.histogram = True, Histogram()

    def set_range(self, low: float, high: float, magnitude: float) -> None:
        """Set the scale for values from `low` to `high`, of which those beyond `magnitude` on either side saturate."""
        self.scale.fill_(max(magnitude / HIGH, SMALLEST))

    def same_as(self, other: FakeQuant) -> bool:
        """Whether both round every number in the same way."""
        return type(self) is type(other) and self.enabled == other.enabled and bool(self.scale == other.scale)

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return x
        if torch.compiler.is_exporting():
            return self._exported(x)
        if self.observing:
            assert self.histogram is not None
            self.histogram.add(x)
            return x
        if self.tracking and self.training:
            with torch.no_grad():
                self.scale.lerp_((x.detach().abs().amax().float() / HIGH).clamp(min=SMALLEST), 0.01)
        return self._rounded(x)

    def _rounded(self, x: Tensor) -> Tensor:
        return rounded(x, self.scale)

    def _exported(self, x: Tensor) -> Tensor:
        """The rounding as a pair of ONNX nodes."""
        return _pair(x, self.scale, torch.zeros((), dtype=torch.int8))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FakeQuant:
        super()._apply(fn, recurse)
        keep_positive(self.scale)
        return self


class UintFakeQuant(FakeQuant):
    """`FakeQuant` with uint8 and a zero point, so that a tensor without negative values uses all 256 steps."""

    zero: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros((), dtype=torch.uint8))

    def set_range(self, low: float, high: float, magnitude: float) -> None:
        # Convolutions pad with zero, so zero must be in the range and exact.
        low, high = max(min(low, 0.0), -magnitude), min(max(high, 0.0), magnitude)
        self.scale.fill_(max((high - low) / 255, SMALLEST))
        self.zero.fill_(min(255, round(-low / float(self.scale))))

    def same_as(self, other: FakeQuant) -> bool:
        return super().same_as(other) and isinstance(other, UintFakeQuant) and bool(self.zero == other.zero)

    def _rounded(self, x: Tensor) -> Tensor:
        return rounded(x, self.scale, -int(self.zero), 255 - int(self.zero))

    def _exported(self, x: Tensor) -> Tensor:
        return _pair(x, self.scale, self.zero)


def rounded(x: Tensor, scale: Tensor, low: int = LOW, high: int = HIGH) -> Tensor:
    """`x` rounded to multiples of `scale`, from `low` to `high` times, in the dtype of `scale`.

    It divides by the scale instead of multiplying by its inverse, as QuantizeLinear does.
    """
    scale32 = scale.float()
    return (integers_of(x, scale32, low, high) * scale32).to(scale.dtype)


def integers_of(x: Tensor, scale: Tensor, low: int = LOW, high: int = HIGH) -> Tensor:
    """`x / scale` rounded to whole numbers from `low` to `high`, float32, with the straight-through gradient."""
    if not torch.is_grad_enabled():
        return (x.float() / scale).clamp_(low, high).round_()
    steps = (x.float() / scale).clamp(low, high)
    # The difference is exact and has no gradient, so the sum is the whole number with the gradient of `steps`.
    return steps + (steps.round() - steps).detach()


def keep_positive(scale: Tensor) -> None:
    """Raise, in place, scales that became zero in float16 to its smallest number. Engines refuse a scale of zero."""
    if scale.dtype == torch.float16:
        scale.clamp_(min=_SMALLEST_HALF)


def _pair(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    steps = torch.onnx.ops.symbolic(
        "QuantizeLinear", (x.to(scale.dtype), scale, zero), dtype=zero.dtype, shape=x.shape, version=OPSET
    )
    return torch.onnx.ops.symbolic(
        "DequantizeLinear", (steps, scale, zero), dtype=scale.dtype, shape=x.shape, version=OPSET
    )
