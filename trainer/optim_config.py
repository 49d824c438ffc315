"""The configuration of optimiser and schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from models.typed import require


@dataclass(frozen=True)
class OptimConfig:
    kind: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    """sgd only."""
    weight_decay: float = 1e-4
    """Never on norms and biases."""
    clip_norm: float = 10.0
    """Largest gradient norm; 0 = no clipping."""
    accumulate: int = 1
    """Batches per optimiser step."""
    ema: float = 0.0
    """Decay of the averaged weights that are validated and saved as best; 0 = none."""
    on_nan: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite stops the run, or is left out, named and counted."""
    nan_limit: int = 20
    """skip: how many may be left out in a run before it stops after all."""

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", "a positive number", self.lr)
        require(0 <= self.momentum < 1, "momentum", "0 up to 1", self.momentum)
        require(self.weight_decay >= 0, "weight_decay", "0 or more", self.weight_decay)
        require(self.clip_norm >= 0, "clip_norm", "0 or more", self.clip_norm)
        require(self.accumulate >= 1, "accumulate", "1 or more", self.accumulate)
        require(0 <= self.ema < 1, "ema", "0 up to 1", self.ema)
        require(self.nan_limit >= 1, "nan_limit", "1 or more", self.nan_limit)


@dataclass(frozen=True)
class ScheduleConfig:
    epochs: int = 12
    kind: Literal["cosine", "step", "constant"] = "cosine"
    warmup_steps: int = 500
    """Optimiser steps of linear warm-up; never more than a tenth of the run."""
    milestones: tuple[float, ...] = (0.667, 0.917)
    """step: parts of the run after which the rate is multiplied by `gamma` (8 and 11 of 12 epochs)."""
    gamma: float = 0.1
    final: float = 0.01
    """cosine: the last rate over the first."""

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "epochs", "1 or more", self.epochs)
        require(self.warmup_steps >= 0, "warmup_steps", "0 or more", self.warmup_steps)
        require(
            list(self.milestones) == sorted(self.milestones) and all(0 < m < 1 for m in self.milestones),
            "milestones", "rising parts of the run between 0 and 1", self.milestones,
        )  # fmt: skip
        require(0 < self.gamma <= 1, "gamma", "above 0, at most 1", self.gamma)
        require(0 <= self.final <= 1, "final", "0 to 1", self.final)
