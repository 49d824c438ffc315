"""An epoch of optimizer steps: losses, accumulation, clipping, and what happens when numbers are not finite."""

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
"""Of the scaler, which starts at 2**16: a loss this small that still overflows is not too large for float16 but NaN."""


@dataclass
class _Step:
    """The batches of an accumulated optimizer step."""

    image_ids: list[int] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)
    """Of its last batch."""


def train_epoch(
    state: State,
    batches: Iterable[Batch],
    count: int,
    log: MetricsLog,
    after_step: Callable[[], None],
    saved: Callable[[], str],
) -> None:
    """Train on `batches`, which are those of the epoch from number `state.batch` of `count` on.

    `after_step` is called when a step, and with it `state`, is complete; `saved` says what last.pt holds.
    Raises `TrainingError` when a loss or a gradient is not finite, or more of them than `optim.nan_limit` were left
    out, and when no picture of the epoch could be used.
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
            # Distributed gradients are means over the processes; theirs are parts of a sum.
            loss = total_loss(terms) * group.size / group_size(index, count, optim.accumulate)
            loss = state.scaler.scale(loss)
            if not skipping:
                loss.backward()  # given to the device before the next line waits
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

    False, with weights and schedule as they were, for gradients that are not finite. Under float16 they are everyday's,
    and the scaler answers them by halving its scale; they count where that has fallen below `LEAST_SCALE` in vain.
    """
    scaler = state.scaler
    scaler.unscale_(state.optimizer)
    norm = clip_gradients(state.model, state.config.optim.clip_norm)
    usable = (scaler.is_enabled() and scaler.get_scale() >= LEAST_SCALE) or math.isfinite(float(norm))
    if usable:
        scaler.step(state.optimizer)
        state.averages.after_step()
        state.schedule.step()
    scaler.update()  # where no step was taken, too: it forgets that the gradients are unscaled
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
    """Stop, or count what was left out; past the limit stop after all."""
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
    """Give back the buffers: the running statistics of BatchNorms have seen the numbers that are not finite."""
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
