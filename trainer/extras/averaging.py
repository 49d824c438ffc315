"""Averages of weights: exponential along the run, and plain over its last epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from models.detector import Detector
from trainer.data.train_set import Batch


@dataclass(frozen=True)
class Averages:
    """The averages of a detector's weights in a training; both may be None."""

    detector: Detector
    """The weights that learn."""
    ema: AveragedModel | None
    """The exponential average over the steps."""
    swa: AveragedModel | None
    """The mean of the weights after each of the last epochs; its BatchNorms need `estimate_norms`."""

    @classmethod
    def of(cls, detector: Detector, decay: float, swa_epochs: int) -> Averages:
        """`decay`: of the exponential average, 0 for none. `swa_epochs`: last epochs in the plain mean, 0 for none."""
        ema = exponential_average(detector, decay) if decay else None
        return cls(detector, ema, AveragedModel(detector) if swa_epochs else None)

    @property
    def deployed(self) -> Detector:
        """The weights that are validated, saved and exported: the exponential average where there is one."""
        return self.detector if self.ema is None else self.ema.module  # type: ignore[return-value]

    def parts(self) -> dict[str, AveragedModel]:
        """The averages that exist, by their names in a checkpoint."""
        return {name: part for name, part in (("average", self.ema), ("swa", self.swa)) if part is not None}

    def after_step(self) -> None:
        if self.ema is not None:
            self.ema.update_parameters(self.detector)

    def after_averaged_epoch(self) -> None:
        """To be called at the end of each of the last `swa_epochs` epochs."""
        if self.swa is not None:
            self.swa.update_parameters(self.detector)


def exponential_average(model: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of weights and buffers.

    The decay ramps up as (1 + n) / (10 + n), so that a short run is not an average of its random start.
    """

    def update(averages: Sequence[Tensor], currents: Sequence[Tensor], n: Tensor | int) -> None:
        weight = 1 - min(decay, (1 + int(n)) / (10 + int(n)))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(list(averages), list(currents), weight)
        else:  # counters, such as BatchNorm's number of batches
            torch._foreach_copy_(list(averages), list(currents))

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


@torch.no_grad()
def estimate_norms(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    amp: torch.dtype | None,
    progress: Callable[[int], None],
) -> None:
    """Set running mean and variance of every BatchNorm that learns to their plain means over `batches`.

    The averaged weights have activations that none of the averaged networks had (Izmailov et al., 2018, section 3.2).
    Frozen BatchNorms keep their statistics. `progress(done)` is called after each batch.
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
