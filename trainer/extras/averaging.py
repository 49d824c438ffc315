"""Averages of weights: exponential along the run, and plain over its last epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from trainer.data.train_set import Batch


def build_average(model: nn.Module, decay: float) -> AveragedModel | None:
    """Exponential moving average of weights and buffers, or None for a decay of 0.

    The decay ramps up as (1 + n) / (10 + n), so that a short run is not an average of its random start.
    """
    if decay == 0:
        return None

    def update(averages: Sequence[Tensor], currents: Sequence[Tensor], n: Tensor | int) -> None:
        weight = 1 - min(decay, (1 + int(n)) / (10 + int(n)))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(list(averages), list(currents), weight)
        else:  # counters, such as BatchNorm's number of batches
            torch._foreach_copy_(list(averages), list(currents))

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def build_swa(model: nn.Module, epochs: int) -> AveragedModel | None:
    """The plain mean of the weights it is updated with, or None for 0 epochs. Its BatchNorms need `estimate_norms`."""
    return AveragedModel(model) if epochs else None


@torch.no_grad()
def estimate_norms(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    amp: torch.dtype | None,
    progress: Callable[[int], None],
) -> None:
    """Set running mean and variance of every BatchNorm that learns to their plain means over `batches`.

    The mean of weights has activations that none of the averaged networks had (Izmailov et al., 2018, section 3.2).
    Frozen BatchNorms keep theirs. `progress(done)` is called after each batch.
    """
    model.train()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # every batch counts the same
    for done, batch in enumerate(batches if norms else (), start=1):
        if len(batch.images):
            with torch.autocast(device.type, amp, enabled=amp is not None):
                model(batch.images.to(device, non_blocking=True))
        progress(done)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
