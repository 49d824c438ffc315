"""Losses need float32: the 2 or 3 digits of half precision are too few for a difference of two overlaps."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """`x` as float32 if it is a narrower type; float32 and float64 stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
