"""Ranges of activations: the magnitude that becomes 127, from a histogram of the observed magnitudes.

Ranges are symmetric: zero stays zero, and values beyond the range saturate. All methods read the same histogram, so
another method can be chosen without observing the pictures again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

Method = Literal["minmax", "percentile", "mse", "entropy"]
METHODS: tuple[Method, ...] = get_args(Method)
BINS = 2048
SAMPLE = 200_000
"""Of a batch's tensor with more values than this, about this many at least are counted."""
LEVELS = 128  # magnitudes of an int8: 0..127
_ZERO = 1e-30  # magnitudes up to this are counted as zeros: float32 cannot divide by a bin of such a width


class Histogram:
    """Counts of |x| in `BINS` equal bins from 0 to `top`; `top` doubles when a larger value is added."""

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.top = 0.0
        self.largest = 0.0
        self.lowest = 0.0  # of the values themselves, with their signs
        self.highest = 0.0

    def add(self, x: Tensor) -> None:
        """Add the finite values of `x`, of any shape. Of many values only every n-th is counted, but the least and the
        largest are always seen.
        """
        values = x.detach().float().flatten()
        low, high = (float(value) for value in values.aminmax()) if values.numel() else (0.0, 0.0)
        if not math.isfinite(low + high):
            values = values[values.isfinite()]
            low, high = (float(value) for value in values.aminmax()) if values.numel() else (0.0, 0.0)
        self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)
        magnitudes = values[
            :: max(1, values.numel() // SAMPLE) | 1
        ].abs()  # an odd step, because rows have even lengths
        largest = max(-low, high)
        if largest <= _ZERO:
            self.counts[0] += magnitudes.numel()
            return
        if self.top == 0.0:
            self.top = largest
        while largest > self.top:  # two bins become one, exactly
            self.counts = torch.cat([self.counts.view(-1, 2).sum(1), torch.zeros(BINS // 2, dtype=torch.float64)])
            self.top *= 2
        self.largest = max(self.largest, largest)
        index = (magnitudes * (BINS / self.top)).long().clamp(max=BINS - 1)
        self.counts += torch.bincount(index, minlength=BINS).double().cpu()

    def range(self, method: Method, percentile: float = 99.99) -> float:
        """The magnitude that becomes 127; 0 where only zeros were added, or nothing."""
        if self.largest == 0.0:
            return 0.0
        if method == "minmax":
            return self.largest
        if method == "percentile":
            reached = self.counts.cumsum(0) >= self.counts.sum() * (percentile / 100)
            return min(self.largest, (int(reached.nonzero()[0]) + 1) * self.top / BINS)
        return min(self.largest, _best(self, _squared_error if method == "mse" else _divergence))


def _best(histogram: Histogram, cost: Callable[[Tensor, int], Tensor]) -> float:
    """The range of the least cost, of those that end where a bin ends and keep at least an eighth of the used bins."""
    used = int(histogram.counts.nonzero()[-1]) + 1
    ends = range(max(LEVELS, used // 8), used + 1, max(1, used // 128))
    costs = [(float(cost(histogram.counts, end)), end) for end in {*ends, used} if end >= LEVELS or end == used]
    return min(costs)[1] * histogram.top / BINS


def _squared_error(counts: Tensor, end: int) -> Tensor:
    """Squared error, in bins, of rounding the centers of bins to multiples of end / 127, with saturation."""
    centers = torch.arange(len(counts), dtype=torch.float64) + 0.5
    step = end / (LEVELS - 1)
    rounded = (centers / step).round().clamp(max=LEVELS - 1) * step
    return (counts * (centers - rounded) ** 2).sum()


def _divergence(counts: Tensor, end: int) -> Tensor:
    """Kullback-Leibler divergence of the saturated distribution from itself in 128 levels (Migacz, "8-bit Inference
    with TensorRT", 2017). The first bin is left out, because the zeros of a ReLU are exact in every range.
    """
    kept = counts[:end].clone()
    kept[-1] += counts[end:].sum()
    kept[0] = 0
    level = (torch.arange(end) * LEVELS) // end
    filled = (counts[:end] > 0).double()
    filled[0] = 0
    inside = counts[:end] * filled
    sums = torch.zeros(LEVELS, dtype=torch.float64).index_add(0, level, inside)
    sizes = torch.zeros(LEVELS, dtype=torch.float64).index_add(0, level, filled)
    coarse = (sums / sizes.clamp(min=1))[level] * filled
    p, q = kept / kept.sum().clamp(min=1e-12), coarse / coarse.sum().clamp(min=1e-12)
    return torch.where(p > 0, p * ((p + 1e-12) / (q + 1e-12)).log(), 0.0).sum()
