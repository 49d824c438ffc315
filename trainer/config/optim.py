"""The configuration of optimizer and schedule."""

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
    """The optimizer.

    kind: The optimizer's rule.
    lr: Learning rate after the warm-up.
    base_batch: The batch that `lr` is meant for: the rate becomes lr * images per step of all processes / base_batch
        (Goyal et al., "Accurate, Large Minibatch SGD", 2017). null: `lr` as it is.
    momentum: sgd: momentum.
    nesterov: sgd: Nesterov's form of the momentum.
    betas: adam, adamw, nadam: decay of the two averages.
    weight_decay: Never on norms and biases. adamw decays weights, the others add it to the gradient (L2).
    backbone_lr: The backbone's rate over that of neck and head.
    stage_decay: Each stage of the backbone has the rate of the one above it times this, down to the stem.
    clip_norm: Largest norm of the gradient; 0: no clipping.
    accumulate: Batches per optimizer step.
    ema: Decay of averaged weights, which are then validated and saved as best; 0: no averages. After n steps the decay
        is min(ema, (1 + n) / (10 + n)).
    on_nan: A loss or a gradient that is not finite stops the run, or the batch is left out, logged and counted.
    nan_limit: skip: the run stops when more batches than this were left out.
    """

    kind: Literal["sgd", "adam", "adamw", "nadam"] = "sgd"
    lr: float = 0.01
    base_batch: int | None = None
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-4
    backbone_lr: float = 1.0
    stage_decay: float = 1.0
    clip_norm: float = 10.0
    accumulate: int = 1
    ema: float = 0.0
    on_nan: Literal["stop", "skip"] = "stop"
    nan_limit: int = 20

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
    """The number of epochs, and the learning rate over them.

    preset: Published schedules: 12, 24, 36 epochs; a tenth of the rate after 8 and 11, 16 and 22, 27 and 33; 500 steps
        of warm-up. Keys in the file override the preset; a preset on the command line overrides the file.
    epochs: Epochs of the run.
    kind: cosine falls to `final`; step multiplies the rate by `gamma` at `milestones`; plateau does so after
        `patience`.
    warmup_steps: Optimizer steps of linear warm-up, at most a tenth of the run.
    milestones: step: parts of the run after which the rate is multiplied by `gamma`.
    gamma: step, plateau: factor on the rate.
    final: cosine: the last rate over the first.
    patience: plateau: the rate is multiplied by `gamma` after so many validations in a row without a better mAP.
    early_stop: End the run after so many validations in a row without a better mAP; 0: never.
    swa_epochs: Stochastic weight averaging (Izmailov et al., 2018) over this many epochs at the end. The mean of the
        weights after each of them gets BatchNorm statistics from one pass over the training pictures. It is validated
        and written to swa.pt, and to best.pt if it is better. 0: none. Not together with `optim.ema` or `early_stop`.
    swa_lr: The constant rate of these epochs over the first rate. `kind` describes the epochs before them only.
    """

    preset: Literal["1x", "2x", "3x"] | None = None
    epochs: int = 12
    kind: Literal["cosine", "step", "constant", "plateau"] = "cosine"
    warmup_steps: int = 500
    milestones: tuple[float, ...] = (0.667, 0.917)
    gamma: float = 0.1
    final: float = 0.01
    patience: int = 2
    early_stop: int = 0
    swa_epochs: int = 0
    swa_lr: float = 0.05

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "epochs", "1 or more", self.epochs)
        require(self.warmup_steps >= 0, "warmup_steps", "0 or more", self.warmup_steps)
        require(
            list(self.milestones) == sorted(self.milestones) and all(0 < m < 1 for m in self.milestones),
            "milestones",
            "rising parts of the run between 0 and 1",
            self.milestones,
        )
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
    """`mapping` without the schedule keys of the preset that `over` asks for: they would override the preset."""
    schedule, new_schedule = mapping.get("schedule"), over.get("schedule")
    preset = PRESETS.get(str(new_schedule.get("preset"))) if isinstance(new_schedule, dict) else None
    if not isinstance(schedule, dict) or preset is None:
        return mapping
    return {**mapping, "schedule": {key: value for key, value in schedule.items() if key not in preset}}
