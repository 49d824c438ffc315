"""An epoch of optimiser steps: losses, accumulation, clipping, and what happens when numbers are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from models.loss import REGION, Losses, detection_loss
from trainer.config.auxiliary import auxiliary_model
from trainer.config.train import OptimConfig, TrainConfig
from trainer.data.train_set import Batch
from trainer.devices.distributed import Group
from trainer.failures import TrainingError, not_finite
from trainer.log.metrics import Records
from trainer.optim import group_size
from trainer.state import State
from trainer.training_model import HelpedLosses

LEAST_SCALE = 2.0**-10
"""Of the scaler, which starts at 2**16: a loss this small that still overflows is not too large for float16 but NaN."""


@dataclass
class _Step:
    """The batches of an accumulated optimiser step."""

    image_ids: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    """Loss terms of its last batch."""


def train_epoch(
    config: TrainConfig,
    state: State,
    batches: Iterable[Batch],
    count: int,
    device: torch.device,
    amp: torch.dtype | None,
    group: Group,
    records: Records,
    after_step: Callable[[], None],
    saved: Callable[[], str],
) -> None:
    """Train on `batches`, which are those of the epoch from number `state.batch` of `count` on.

    `after_step` is called when a step, and with it `state`, is complete; `saved` says what last.pt holds.
    Raises `TrainingError` when a loss or a gradient is not finite, or more of them than `optim.nan_limit` were left
    out, and when no picture of the epoch could be used.
    """
    state.model.train()
    accumulate, skipping = config.optim.accumulate, config.optim.on_nan == "skip"
    step = _Step()
    for index, batch in enumerate(batches, start=state.batch):
        images = group.count(len(batch.images), device)
        if images:  # a batch of which no image could be read is empty
            buffers = _copies(state.learner) if skipping else []
            terms = losses(config, state, batch, device, amp, group)
            # Distributed gradients are means over the processes; theirs are parts of a sum.
            total = state.scaler.scale(terms.total * group.size / group_size(index, count, accumulate))
            if not skipping:
                total.backward()  # given to the device before the next line waits for it
            values = group.total(torch.stack(list(terms)).detach()).tolist()
            if all(math.isfinite(v) for v in values):
                if skipping:
                    total.backward()
                step.image_ids += batch.image_ids
                step.values = values
                records.batch(values, images)
            else:
                _not_finite(config.optim, state, records, "loss", values, list(batch.image_ids), saved)
                _restore(state.learner, buffers)
        if (index + 1) % accumulate == 0 or index + 1 == count:
            if step.values and not optimizer_step(config.optim, state):
                _not_finite(config.optim, state, records, "gradient", step.values, step.image_ids, saved)
            step = _Step()
            state.batch = index + 1
            records.step()
            after_step()
    if records.images == 0 and state.skipped == 0:
        raise TrainingError("not one training picture could be used; the log says why, `trainer check-data` lists them")


def losses(
    config: TrainConfig, state: State, batch: Batch, device: torch.device, amp: torch.dtype | None, group: Group
) -> Losses | HelpedLosses:
    """Network under autocast; assignment and losses in float32; those of teacher and auxiliary head beside them.

    Of a batch that processes share, this one's part of the losses: a process without pictures takes part with a blank
    one that teaches nothing, because the others wait for it.
    """
    pictures = batch.images if len(batch.images) else torch.zeros(1, *config.model.input_size_hw, 3, dtype=torch.uint8)
    images = pictures.to(device, non_blocking=True)
    with torch.autocast(device.type, amp, enabled=amp is not None):
        look = state.look(images)
    boxes, labels = batch.boxes_xyxy.to(device, non_blocking=True), batch.labels.to(device, non_blocking=True)
    grid = state.model.priors((images.shape[1], images.shape[2]))
    usable = len(batch.images) > 0
    sizes_hw = batch.sizes_hw.to(device, non_blocking=True) if usable else None
    if not usable:
        boxes, labels = boxes.new_zeros(1, 0, 4), labels.new_zeros(1, 0)

    def total(mine: Tensor) -> Tensor:
        return group.total(mine if usable else torch.zeros_like(mine))

    regions = bool((batch.labels.numpy() == REGION).any())  # in host memory, where nobody waits for the answer
    terms: Losses | HelpedLosses = detection_loss(
        config.model, look.raw, grid, boxes, labels, sizes_hw, total, regions=regions
    )
    if state.whole is not None:
        distill = aux = terms.cls.new_zeros(())
        if state.distillation is not None:
            distill = state.distillation.loss(images, look.raw, look.levels, amp, total)
        if config.auxiliary is not None and look.auxiliary is not None:
            coarse = auxiliary_model(config.auxiliary, config.model)
            aux = config.auxiliary.weight * detection_loss(
                coarse, look.auxiliary, grid, boxes, labels, sizes_hw, total, regions=regions
            ).total  # fmt: skip
        terms = HelpedLosses(terms.cls, terms.box, terms.quality, distill, aux)
    return terms if usable else type(terms)(*(0 * term for term in terms))


def optimizer_step(config: OptimConfig, state: State) -> bool:
    """Unscale, clip, step, average, advance the schedule, forget the gradients.

    False, with weights and schedule as they were, for gradients that are not finite. Under float16 they are everyday's,
    and the scaler answers them by halving its scale; they count where that has fallen below `LEAST_SCALE` in vain.
    """
    state.scaler.unscale_(state.optimizer)
    norm = clip_gradients(state.learner, config.clip_norm)
    if state.scaler.is_enabled():
        usable = state.scaler.get_scale() >= LEAST_SCALE or math.isfinite(float(norm))
    else:
        usable = math.isfinite(float(norm))
    if usable:
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.average is not None:
            state.average.update_parameters(state.model)
        state.schedule.step()
    else:
        state.scaler.update()  # forgets that the gradients are unscaled
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
    config: OptimConfig, state: State, records: Records, what: str, values: list[float], image_ids: list[int],
    saved: Callable[[], str],
) -> None:  # fmt: skip
    """Stop, or count what was left out; past the limit stop after all."""
    message = not_finite(what, state.epoch, values, image_ids, saved())
    if config.on_nan == "stop":
        raise TrainingError(message)
    state.skipped += 1
    if state.skipped > config.nan_limit:
        raise TrainingError(f"{state.skipped} batches were left out, more than optim.nan_limit; the last: {message}")
    records.warn(
        f"left out number {state.skipped} (at most {config.nan_limit}): the {what} is not finite in epoch "
        f"{state.epoch + 1} on images {image_ids}"
    )


def _copies(model: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in model.buffers()]


def _restore(model: nn.Module, copies: list[Tensor]) -> None:
    """Give back the buffers: the running statistics of BatchNorms have seen the numbers that are not finite."""
    with torch.no_grad():
        for buffer, copy in zip(model.buffers(), copies, strict=True):
            buffer.copy_(copy)
