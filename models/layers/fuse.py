"""Reparameterization: the training form of a network turned into its equal, simpler inference form."""

from __future__ import annotations

import copy
import math
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from isodet.errors import IsodetError

M = TypeVar("M", bound=nn.Module)


@runtime_checkable
class Fusable(Protocol):
    """A block that has a simpler equal form at inference."""

    def fuse(self) -> nn.Module: ...


class FuseError(IsodetError, RuntimeError):
    """A fused network does not compute what its training form computes."""


def require_eval(block: nn.Module) -> None:
    """Raise `FuseError` for a block in train mode, whose BatchNorm statistics still change."""
    if any(module.training for module in block.modules()):
        raise FuseError("fuse() needs a model in eval mode: call model.eval() first")


def fuse(model: M) -> M:
    """A copy of `model` in eval mode, in which each block with a `fuse()`, `model` included, is replaced by its result.

    Raises `FuseError` in train mode.
    """
    require_eval(model)
    holder = nn.ModuleList([copy.deepcopy(model)])
    _fuse_children(holder)
    fused = holder[0]
    assert isinstance(fused, type(model)), "fuse() of a model returns a model of the same class"
    return fused.eval()


def _fuse_children(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, Fusable):
            setattr(module, name, child.fuse())
        else:
            _fuse_children(child)


def fused_difference(model: nn.Module, fused: nn.Module, images: Tensor) -> float:
    """Largest difference between two forms on `images`, relative to the scale of each output."""
    worst = 0.0
    with torch.inference_mode():
        for before, after in zip(model(images), fused(images), strict=True):
            if before is not None:
                scale = before.abs().amax().clamp(min=1e-6)
                difference = float((before - after).abs().amax() / scale)
                worst = difference if math.isnan(difference) else max(worst, difference)  # max() would lose a NaN
    return worst


def assert_fused(model: nn.Module, fused: nn.Module, images: Tensor, tolerance: float = 1e-4) -> float:
    """`fused_difference`; raises `FuseError` if it is above `tolerance` or NaN."""
    difference = fused_difference(model, fused, images)
    if not difference <= tolerance:
        raise FuseError(
            f"folding changed the network's output by {difference:.2e} of its scale (at most {tolerance:.0e} "
            "allowed): the weights hold values that float32 cannot fold, for example a BatchNorm variance of zero"
        )
    return difference
