"""Half precision has 3 or 2 digits: enough for activations, not for the difference of two overlaps."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """`x` in float32 where it is narrower; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
