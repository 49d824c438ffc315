"""An epoch of optimizer steps: losses, accumulation, clipping, and losses and gradients that are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from trainer.data.train_set import Batch
from trainer.failures import TrainingError, not_finite
from trainer.log.metrics import MetricsLog
from trainer.optim import group_size
from trainer.state import State
from trainer.training_model import total_loss

LEAST_SCALE = 2.0**-10
"""The scaler starts at 2**16. Gradients that overflow even at this scale are NaN, not too large for float16."""


@dataclass
class _Step:
    """The batches of an accumulated optimizer step."""

    image_ids: list[int] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)
    """Those of the last batch, by name."""


def train_epoch(
    state: State,
    batches: Iterable[Batch],
    count: int,
    log: MetricsLog,
    after_step: Callable[[], None],
    saved: Callable[[], str],
) -> None:
    """Train on `batches`: those of an epoch of `count` batches, from number `state.batch` on.

    `after_step` is called after each optimizer step, when `state` is complete. `saved` says what last.pt holds. Raises
    `TrainingError` for a loss or a gradient that is not finite, or for more of them than `optim.nan_limit` where they
    are left out, and where no picture of the epoch can be used.
    """
    model, optim = state.model, state.config.optim
    group, device, skipping = model.group, model.device, optim.on_nan == "skip"
    model.train()
    step = _Step()
    for index, batch in enumerate(batches, start=state.batch):
        images = group.count(len(batch.images), device)
        if images:  # a batch of which no image could be read is empty
            buffers = [buffer.clone() for buffer in model.buffers()] if skipping else []
            terms = state.forward(batch.to(device))
            # DistributedDataParallel takes the mean of the gradients, but the losses are parts of one sum.
            loss = total_loss(terms) * group.size / group_size(index, count, optim.accumulate)
            loss = state.scaler.scale(loss)
            if not skipping:
                loss.backward()  # queued on the device before the next line waits for it
            values = group.total(torch.stack([*terms.values()]).detach()).tolist()
            losses = dict(zip(terms, values, strict=True))
            if all(map(math.isfinite, values)):
                if skipping:
                    loss.backward()
                step.image_ids += batch.image_ids
                step.losses = losses
                log.batch(losses, images)
            else:
                _not_finite(state, log, "loss", losses, list(batch.image_ids), saved)
                _restore(model, buffers)
        if (index + 1) % optim.accumulate == 0 or index + 1 == count:
            if step.losses and not optimizer_step(state):
                _not_finite(state, log, "gradient", step.losses, step.image_ids, saved)
            step = _Step()
            state.batch = index + 1
            log.step()
            after_step()
    if log.images == 0 and state.skipped == 0:
        raise TrainingError("not one training picture could be used; the log says why, `trainer check-data` lists them")


def optimizer_step(state: State) -> bool:
    """Unscale, clip, step, average, advance the schedule, forget the gradients.

    Returns False, with weights and schedule unchanged, for gradients that are not finite. Under float16 they are usual:
    the scaler halves its scale, and the step counts as failed only where the scale is below `LEAST_SCALE`.
    """
    scaler = state.scaler
    scaler.unscale_(state.optimizer)
    norm = clip_gradients(state.model, state.config.optim.clip_norm)
    usable = (scaler.is_enabled() and scaler.get_scale() >= LEAST_SCALE) or math.isfinite(float(norm))
    if usable:
        scaler.step(state.optimizer)
        state.averages.after_step()
        state.schedule.step()
    scaler.update()  # also after no step: it resets that the gradients are unscaled
    state.optimizer.zero_grad(set_to_none=True)
    return usable


def clip_gradients(model: nn.Module, largest: float) -> Tensor:
    """Scale all gradients together so that their norm is at most `largest` (0: leave them); returns the norm."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if largest:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), largest, norm)
    return norm


def _not_finite(
    state: State, log: MetricsLog, quantity: str, losses: dict[str, float], image_ids: list[int],
    saved: Callable[[], str],
) -> None:  # fmt: skip
    """Raise `TrainingError` under `on_nan: stop`, or past `optim.nan_limit`; else count and log what is left out."""
    optim = state.config.optim
    message = not_finite(quantity, state.epoch, losses, image_ids, saved())
    if optim.on_nan == "stop":
        raise TrainingError(message)
    state.skipped += 1
    if state.skipped > optim.nan_limit:
        raise TrainingError(f"{state.skipped} batches were left out, more than optim.nan_limit; the last: {message}")
    log.warn(
        f"left out number {state.skipped} (at most {optim.nan_limit}): the {quantity} is not finite in epoch "
        f"{state.epoch + 1} on images {image_ids}"
    )


def _restore(model: nn.Module, buffers: list[Tensor]) -> None:
    """Restore the buffers: the running statistics of BatchNorms contain the numbers that are not finite."""
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
