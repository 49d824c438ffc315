"""The trainer's own steps on scenes that are in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.networks import Scene, forward_flops
from models.detector import Detector
from trainer.config.train import TrainConfig
from trainer.config_reader import train_config
from trainer.data.train_set import Batch
from trainer.devices.distributed import Group
from trainer.devices.precision import pick_amp
from trainer.log.metrics import MetricsLog
from trainer.state import new_state
from trainer.step import train_epoch


def batch_of(scene: Scene, pinned: bool = False) -> Batch:
    """As the trainer's loader hands it over: for a GPU in page-locked memory."""
    count, height, width, _ = scene.images.shape
    tensors = [scene.images, scene.boxes_xyxy, scene.labels, torch.tensor([[height, width]] * count)]
    images, boxes, labels, sizes = (t.pin_memory() for t in tensors) if pinned else tensors
    return Batch(images, boxes, labels, tuple(range(count)), sizes)


BACKWARD = 3.0
"""A training step's operations over a forward pass's: as many again for each of the two gradients."""


class Curve(MetricsLog):
    """A log that keeps each step's losses and writes nothing."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config, Path("nowhere"), 1, quiet=True, writes=False)
        self.totals: list[float] = []

    def batch(self, losses: Mapping[str, float], images: int) -> None:
        super().batch(losses, images)
        self.totals.append(sum(losses.values()))


@dataclass(frozen=True)
class Precision:
    """What the multiplications of a training are done in."""

    name: str
    amp: str
    tf32_convolutions: bool
    """Whether float32 may be TensorFloat-32 in convolutions,"""
    tf32_products: bool
    """and in matrix products."""

    def apply(self) -> None:
        """For the whole process."""
        torch.backends.cudnn.allow_tf32 = self.tf32_convolutions
        torch.backends.cuda.matmul.allow_tf32 = self.tf32_products


FP32, TF32 = Precision("fp32", "off", False, False), Precision("tf32", "off", True, True)
BF16, FP16 = Precision("bf16", "bf16", True, True), Precision("fp16", "fp16", True, True)
AS_SHIPPED = Precision("as shipped", "off", True, False)
"""Float32 as PyTorch has it unless told: TensorFloat-32 in a GPU's convolutions, and nowhere else."""


class Training:
    """The trainer's own steps on batches that are in memory: `trainer.step.train_epoch`, scaler, clipping and all."""

    def __init__(
        self, model: Detector, device: str, amp: str = "off", compiles: bool = False, channels_last: bool = True,
        optim: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        split = {"annotations": "none", "images": "none"}
        self.config = train_config({
            "data": {"train": split, "val": split}, "model": {"classes": ["replaced"]}, "amp": amp, "batch_size": 16,
            "compile": compiles, "channels_last": channels_last, "device": device,
            "optim": {"kind": "sgd", "lr": 1e-4, **(optim or {})}, "schedule": {"kind": "constant", "warmup_steps": 0},
        })  # fmt: skip
        self.config = replace(self.config, model=model.config)
        self.device = torch.device(device)
        self.amp = pick_amp(self.config.amp, self.device)
        self.state = new_state(self.config, model.to(self.device), self.amp, 1000, Group())
        self.curve = Curve(self.config)

    @cached_property
    def flops(self) -> float:
        """Floating-point operations of a step, for each picture."""
        return BACKWARD * forward_flops(self.state.detector)

    def steps(self, batch: Batch, count: int) -> None:
        """Train on `batch` so many times."""
        self.run(repeat(batch, count), count)

    def run(self, batches: Iterator[Batch], count: int) -> None:
        self.state.batch = 0
        train_epoch(self.state, batches, count, self.curve, nothing, str)


def nothing() -> None:
    """What follows a step here."""
