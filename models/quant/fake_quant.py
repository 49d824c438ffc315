"""Numbers rounded to what an int8 can say, in float arithmetic that equals ONNX's to the last bit.

Symmetric, as TensorRT has it: activations with one scale for a tensor, weights with one for each output channel
(`models.quant.convolution`). The gradient is that of the identity inside the range and zero beyond it (Jacob et al.,
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.quant.ranges import Histogram

LOW, HIGH = -128, 127
SMALLEST = 1e-12  # a scale, for channels and tensors of zeros
_SMALLEST_HALF = 2.0**-24  # the same, of half precision, in which the other would be zero
OPSET = 19  # the version of QuantizeLinear and DequantizeLinear that is meant


class FakeQuant(nn.Module):
    """A tensor as int8 would have it: `round(clamp(x / scale)) * scale`. [...] -> [...] of the type of `scale`, float32
    unless the module was made `half()`.

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

    def set_range(self, low: float, high: float, magnitude: float) -> None:
        """Values from `low` to `high` exist; those beyond `magnitude` on either side saturate."""
        self.scale.fill_(max(magnitude / HIGH, SMALLEST))

    def same_as(self, other: FakeQuant) -> bool:
        """Whether both round every number alike."""
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
        """The same as a pair of ONNX nodes."""
        return _pair(x, self.scale, torch.zeros((), dtype=torch.int8))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FakeQuant:
        super()._apply(fn, recurse)
        keep_positive(self.scale)
        return self


class UintFakeQuant(FakeQuant):
    """The same with uint8 and a zero point, so that a tensor which is never negative has all 256 steps."""

    zero: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros((), dtype=torch.uint8))

    def set_range(self, low: float, high: float, magnitude: float) -> None:
        # Zero, with which convolutions pad, is in the range and exact.
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
    """`x` as whole multiples of `scale`, `low` to `high` of them, of the type of `scale`; divided, not multiplied by
    1 / scale, as QuantizeLinear does.
    """
    wide = scale.float()
    return (integers_of(x, wide, low, high) * wide).to(scale.dtype)


def integers_of(x: Tensor, scale: Tensor, low: int = LOW, high: int = HIGH) -> Tensor:
    """`x / scale` in whole numbers, float32, with the straight-through gradient."""
    if not torch.is_grad_enabled():
        return (x.float() / scale).clamp_(low, high).round_()
    steps = (x.float() / scale).clamp(low, high)
    # The added difference has no gradient and is exact, so that the sum is the whole number itself.
    return steps + (steps.round() - steps).detach()


def keep_positive(scale: Tensor) -> None:
    """In place: what half precision made zero becomes its smallest number. Engines refuse a scale of zero."""
    if scale.dtype == torch.float16:
        scale.clamp_(min=_SMALLEST_HALF)


def _pair(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    steps = torch.onnx.ops.symbolic(
        "QuantizeLinear", (x.to(scale.dtype), scale, zero), dtype=zero.dtype, shape=x.shape, version=OPSET
    )
    return torch.onnx.ops.symbolic(
        "DequantizeLinear", (steps, scale, zero), dtype=scale.dtype, shape=x.shape, version=OPSET
    )
