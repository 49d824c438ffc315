"""Optimiser, learning rate and averaged weights; the arithmetic is pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from trainer.config import OptimConfig, ScheduleConfig


def batches_per_epoch(images: int, batch_size: int) -> int:
    """Whole batches only, so that every step weighs the same; one smaller batch if there is no whole one."""
    return max(images // batch_size, 1)


def steps_per_epoch(batches: int, accumulate: int) -> int:
    """Optimiser steps in an epoch of `batches`; the last group of an epoch may be smaller."""
    return math.ceil(batches / accumulate)


def group_size(batch: int, batches: int, accumulate: int) -> int:
    """How many batches share the optimiser step of batch number 0 <= `batch` < `batches`."""
    return min(accumulate, batches - batch // accumulate * accumulate)


def lr_factor(step: int, total_steps: int, config: ScheduleConfig) -> float:
    """What the base learning rate is multiplied by at optimiser step 0 <= step < total_steps.

    Linear warm-up over `warmup_steps` (at most a tenth of the run) that reaches 1 on its last step, then
    cosine to `final`, or steps of `gamma` at the milestones (parts of the whole run), or constant.
    """
    warmup = min(config.warmup_steps, total_steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    if config.kind == "cosine":
        done = (step - warmup) / max(total_steps - 1 - warmup, 1)
        return config.final + (1 - config.final) * (1 + math.cos(math.pi * min(done, 1.0))) / 2
    if config.kind == "step":
        return config.gamma ** sum(step >= m * total_steps for m in config.milestones)
    return 1.0


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weights of two or more dimensions decay; norms, biases and per-level scales do not."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    groups = parameter_groups(model, config.weight_decay)
    if config.kind == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


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
