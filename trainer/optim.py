"""Optimizer and learning rate; the arithmetic is pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from trainer.config.train import OptimConfig, ScheduleConfig


def steps_per_epoch(batches: int, accumulate: int) -> int:
    """Optimizer steps in an epoch of `batches`; the last group of an epoch may be smaller."""
    return math.ceil(batches / accumulate)


def group_size(batch: int, batches: int, accumulate: int) -> int:
    """How many batches share the optimizer step of batch number 0 <= `batch` < `batches`."""
    return min(accumulate, batches - batch // accumulate * accumulate)


def lr_factor(step: int, total_steps: int, config: ScheduleConfig) -> float:
    """What the base learning rate is multiplied by at optimizer step 0 <= step < total_steps.

    First a linear warm-up over `warmup_steps` (at most a tenth of the run), which reaches 1 on its last step. Then what
    `_DECAYS` has for the kind of schedule. The epochs of weight averaging, at the end, have `swa_lr` and count for
    nothing else here.
    """
    averaged = total_steps * config.swa_epochs // config.epochs
    total_steps -= averaged
    if averaged and step >= total_steps:
        return config.swa_lr
    warmup = min(config.warmup_steps, total_steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(total_steps - 1 - warmup, 1)
    passed = sum(step >= milestone * total_steps for milestone in config.milestones)
    return _DECAYS[config.kind](config, min(done, 1.0), passed)


_DECAYS: dict[str, Callable[[ScheduleConfig, float, int], float]] = {
    "cosine": lambda config, done, _: config.final + (1 - config.final) * (1 + math.cos(math.pi * done)) / 2,
    "step": lambda config, _, passed: config.gamma**passed,
    "constant": lambda *_: 1.0,
    "plateau": lambda *_: 1.0,  # `Plateau` drops it
}
"""By kind of schedule, the factor after the warm-up: from the part of the run that is done (0..1), and the number of
milestones that are passed."""


@dataclass
class Plateau:
    """How long the validation mAP has not improved, and the factor on the learning rate that follows."""

    factor: float = 1.0
    """Factor on the schedule's rate."""
    since_best: int = 0
    """Validations in a row without a better mAP."""
    since_drop: int = 0
    """The same since the last drop of the rate."""

    def update(self, better: bool, config: ScheduleConfig) -> bool:
        """Count a validation; True when the rate dropped."""
        self.since_best = 0 if better else self.since_best + 1
        self.since_drop = 0 if better else self.since_drop + 1
        if config.kind != "plateau" or self.since_drop < config.patience:
            return False
        self.factor, self.since_drop = self.factor * config.gamma, 0
        return True

    def stops(self, config: ScheduleConfig) -> bool:
        return 0 < config.early_stop <= self.since_best


def build_schedule(
    optimizer: torch.optim.Optimizer, total_steps: int, config: ScheduleConfig, plateau: Plateau
) -> LambdaLR:
    """`lr_factor` over the run, times the current factor of `plateau`."""
    return LambdaLR(optimizer, lambda step: lr_factor(step, total_steps, config) * plateau.factor)


def refresh_rates(schedule: LambdaLR) -> None:
    """Set the rate of the optimizer's next step again, after the plateau dropped it."""
    factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
    rates = [base * factor for base, factor in zip(schedule.base_lrs, factors, strict=True)]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates


def learning_rate(config: OptimConfig, batch_size: int, processes: int = 1) -> float:
    """`lr`, scaled linearly by the images of an optimizer step over `base_batch` where there is one."""
    if config.base_batch is None:
        return config.lr
    return config.lr * batch_size * config.accumulate * processes / config.base_batch


def parameter_groups(
    model: nn.Module, weight_decay: float, lr: float | None = None, backbone_lr: float = 1.0, stage_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Weights of two or more dimensions decay; norms, biases and per-level scales do not.

    With `backbone_lr` or `stage_decay` other than 1, the backbone has groups with rates of their own: that of stage i
    (0 is the stem, 4 the last stage) is `lr * backbone_lr * stage_decay ** (4 - i)`. All other weights have `lr`.
    """
    factors: dict[nn.Parameter, float] = {}
    if (backbone_lr, stage_decay) != (1.0, 1.0):
        factors = {p: backbone_lr for p in model.backbone.parameters()}  # type: ignore[union-attr]
    if stage_decay != 1:
        stages = model.backbone.stem_and_stages()  # type: ignore[union-attr, operator]
        for i, stage in enumerate(stages):
            factors |= {p: backbone_lr * stage_decay ** (4 - i) for module in stage for p in module.parameters()}
    groups: list[dict[str, Any]] = []
    trainable = [p for p in model.parameters() if p.requires_grad]
    for factor in sorted({factors.get(p, 1.0) for p in trainable}, reverse=True) or [1.0]:
        members = [p for p in trainable if factors.get(p, 1.0) == factor]
        rate = {} if lr is None else {"lr": lr * factor}
        groups.append({"params": [p for p in members if p.ndim > 1], "weight_decay": weight_decay, **rate})
        groups.append({"params": [p for p in members if p.ndim <= 1], "weight_decay": 0.0, **rate})
    return groups


def add_parameters(optimizer: torch.optim.Optimizer, module: nn.Module, weight_decay: float) -> None:
    """Add the parameters of `module`, if it has any, to `optimizer`, at the optimizer's rate."""
    if list(module.parameters()):
        for group in parameter_groups(module, weight_decay):
            optimizer.add_param_group(group)


def build_optimizer(model: nn.Module, config: OptimConfig, lr: float | None = None) -> torch.optim.Optimizer:
    """The optimizer of `config` with the rate `lr` (default: the config's own, not scaled)."""
    lr = config.lr if lr is None else lr
    groups = parameter_groups(model, config.weight_decay, lr, config.backbone_lr, config.stage_decay)
    return _OPTIMIZERS[config.kind](groups, lr, config)


_OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], float, OptimConfig], torch.optim.Optimizer]] = {
    "sgd": lambda groups, lr, c: torch.optim.SGD(groups, lr, c.momentum, nesterov=c.nesterov, fused=True),
    "adam": lambda groups, lr, c: torch.optim.Adam(groups, lr, c.betas, fused=True),
    "adamw": lambda groups, lr, c: torch.optim.AdamW(groups, lr, c.betas, fused=True),
    "nadam": lambda groups, lr, c: torch.optim.NAdam(groups, lr, c.betas),  # has no fused form
}
