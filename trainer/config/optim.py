"""The configuration of optimiser and schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from isodet.strict import ConfigError, merge, require

_DETECTION: dict[str, Any] = {"kind": "step", "gamma": 0.1, "warmup_steps": 500}
PRESETS: dict[str, dict[str, Any]] = {
    "1x": {**_DETECTION, "epochs": 12, "milestones": (8 / 12, 11 / 12)},
    "2x": {**_DETECTION, "epochs": 24, "milestones": (16 / 24, 22 / 24)},
    "3x": {**_DETECTION, "epochs": 36, "milestones": (27 / 36, 33 / 36)},
}
"""mmdetection's schedules by their usual names."""


@dataclass(frozen=True)
class OptimConfig:
    kind: Literal["sgd", "adam", "adamw", "nadam"] = "sgd"
    lr: float = 0.01
    base_batch: int | None = None
    """The batch that `lr` is meant for: it is scaled by images per step (of all processes) over this (Goyal et al.,
    "Accurate, Large Minibatch SGD", 2017); null: taken as it is."""
    momentum: float = 0.9
    """sgd only."""
    nesterov: bool = False
    """sgd only: Nesterov's momentum."""
    betas: tuple[float, float] = (0.9, 0.999)
    """adam, adamw, nadam."""
    weight_decay: float = 1e-4
    """Never on norms and biases. adamw decays weights, the others their gradient (L2)."""
    backbone_lr: float = 1.0
    """The backbone's rate over that of neck and head."""
    stage_decay: float = 1.0
    """Each stage of the backbone has the rate of the one above it times this, down to the stem; 1 = all the same."""
    clip_norm: float = 10.0
    """Largest gradient norm; 0 = no clipping."""
    accumulate: int = 1
    """Batches per optimiser step."""
    ema: float = 0.0
    """Decay of the averaged weights that are validated and saved as best; 0 = none. It starts lower, as
    (1 + n) / (10 + n) after n steps."""
    on_nan: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite stops the run, or is left out, named and counted."""
    nan_limit: int = 20
    """skip: how many may be left out in a run before it stops after all."""

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", "a positive number", self.lr)
        require(self.base_batch is None or self.base_batch >= 1, "base_batch", "null, or 1 or more", self.base_batch)
        require(0 <= self.momentum < 1, "momentum", "0 up to 1", self.momentum)
        require(all(0 <= b < 1 for b in self.betas), "betas", "two numbers from 0 up to 1", self.betas)
        require(self.weight_decay >= 0, "weight_decay", "0 or more", self.weight_decay)
        require(0 < self.backbone_lr <= 10, "backbone_lr", "above 0, at most 10", self.backbone_lr)
        require(0 < self.stage_decay <= 1, "stage_decay", "above 0, at most 1", self.stage_decay)
        require(self.clip_norm >= 0, "clip_norm", "0 or more", self.clip_norm)
        require(self.accumulate >= 1, "accumulate", "1 or more", self.accumulate)
        require(0 <= self.ema < 1, "ema", "0 up to 1", self.ema)
        require(self.nan_limit >= 1, "nan_limit", "1 or more", self.nan_limit)
        if self.nesterov and (self.kind != "sgd" or self.momentum == 0):
            raise ConfigError(
                f"nesterov: needs kind: sgd with a momentum, got {self.kind} with {self.momentum}; nadam is Adam's"
            )


@dataclass(frozen=True)
class ScheduleConfig:
    preset: Literal["1x", "2x", "3x"] | None = None
    """Published schedules: 12, 24, 36 epochs, tenth of the rate after 8 and 11, 16 and 22, 27 and 33, 500 warm-up
    steps. Laid under the other keys when a config is read."""
    epochs: int = 12
    kind: Literal["cosine", "step", "constant", "plateau"] = "cosine"
    warmup_steps: int = 500
    """Optimiser steps of linear warm-up; never more than a tenth of the run."""
    milestones: tuple[float, ...] = (0.667, 0.917)
    """step: parts of the run after which the rate is multiplied by `gamma` (8 and 11 of 12 epochs)."""
    gamma: float = 0.1
    """step, plateau."""
    final: float = 0.01
    """cosine: the last rate over the first."""
    patience: int = 2
    """plateau: the rate is multiplied by `gamma` after so many validations in a row without a better mAP."""
    early_stop: int = 0
    """End the run after so many validations in a row without a better mAP; 0 = never."""
    swa_epochs: int = 0
    """Stochastic weight averaging (Izmailov et al., 2018): mean of the weights after each of the last epochs, with
    statistics of its own for BatchNorms; written to swa.pt, and to best.pt if it is better. 0 = none."""
    swa_lr: float = 0.05
    """The rate of these epochs over the first; the schedule proper ends before them."""

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "epochs", "1 or more", self.epochs)
        require(self.warmup_steps >= 0, "warmup_steps", "0 or more", self.warmup_steps)
        require(
            list(self.milestones) == sorted(self.milestones) and all(0 < m < 1 for m in self.milestones),
            "milestones", "rising parts of the run between 0 and 1", self.milestones,
        )  # fmt: skip
        require(0 < self.gamma <= 1, "gamma", "above 0, at most 1", self.gamma)
        require(0 <= self.final <= 1, "final", "0 to 1", self.final)
        require(self.patience >= 1, "patience", "1 or more", self.patience)
        require(self.early_stop >= 0, "early_stop", "0 or more", self.early_stop)
        require(0 <= self.swa_epochs < self.epochs, "swa_epochs", "0 up to the number of epochs", self.swa_epochs)
        require(0 < self.swa_lr <= 1, "swa_lr", "above 0, at most 1", self.swa_lr)
        if self.swa_epochs and self.early_stop:
            raise ConfigError(
                "swa_epochs: the last epochs are not known beforehand when early_stop may end the run; choose one"
            )


def schedule_mapping(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    """`mapping` with the keys of its `preset`, where it names one, laid under its own."""
    preset = PRESETS.get(str(mapping.get("preset")))
    return mapping if preset is None else merge(preset, mapping)


def under_preset(mapping: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`mapping` without the keys of a preset that `over` asks for: what a file says of them would make it nothing."""
    schedule, asked = mapping.get("schedule"), over.get("schedule")
    if not isinstance(schedule, dict) or not isinstance(asked, dict) or asked.get("preset") not in PRESETS:
        return mapping
    return {
        **mapping,
        "schedule": {key: value for key, value in schedule.items() if key not in PRESETS[asked["preset"]]},
    }
