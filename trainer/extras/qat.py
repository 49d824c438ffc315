"""Quantization-aware training: a trained checkpoint is trained on with weights and activations of 8 bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from isodet.selection import evenly_spread
from models.detector import Detector
from models.quant import FakeQuant, QuantDetector
from trainer.config.train import TrainConfig
from trainer.data.train_set import TrainSet


def calibrate(detector: Detector, config: TrainConfig, train_set: TrainSet, device: torch.device) -> str:
    """Observe the ranges on pictures spread over `train_set`, without augmentation; returns a sentence for the log.

    Without `config.qat` nothing happens, and the sentence is ''.
    """
    if config.qat is None or not isinstance(detector, QuantDetector):
        return ""
    qat = config.qat
    images = detector.calibrate(_batches(train_set.plain(), qat.images, device), qat.method, qat.percentile)
    return (
        f"8 bits in {len(detector.layers)} convolutions; ranges by {qat.method} on {images} training pictures, "
        f"following until epoch {last_moving_epoch(config)}"
    )


def _batches(plain: TrainSet, count: int, device: torch.device, size: int = 8) -> Iterator[torch.Tensor]:
    """`count` pictures, in batches of one size each."""
    by_shape: dict[tuple[int, ...], list[np.ndarray[Any, Any]]] = {}
    for index in evenly_spread(range(len(plain)), count):
        sample = plain[index]
        if sample is None:  # unreadable; it is logged
            continue
        batch = by_shape.setdefault(sample.image.shape, [])
        batch.append(sample.image)
        if len(batch) == size:
            yield torch.from_numpy(np.stack(by_shape.pop(sample.image.shape))).to(device)
    for batch in by_shape.values():
        yield torch.from_numpy(np.stack(batch)).to(device)


def last_moving_epoch(config: TrainConfig) -> int:
    """Ranges follow the activations up to this epoch, counted from 1."""
    return 0 if config.qat is None else round(config.qat.freeze * config.schedule.epochs)


def follow_ranges(model: nn.Module, follow: bool) -> None:
    """Let every range follow the activations of training, or keep it fixed."""
    for module in model.modules():
        if isinstance(module, FakeQuant):
            module.tracking = follow
