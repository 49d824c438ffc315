"""The configuration of training with quantization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from isodet.strict import require


@dataclass(frozen=True)
class QatConfig:
    """Training with 8-bit weights and activations (docs/training.md).

    images: Training pictures on which the ranges of activations are observed before the first step.
    method: How a range is chosen from what was observed (`models.quant.ranges`).
    percentile: percentile: percentage of magnitudes that are within the range.
    freeze: Part of the epochs during which ranges follow the activations. After it they stay.
    float_layers: Convolutions that stay in float besides the last predictions, as backbone.conv1.
    """

    images: int = 256
    method: Literal["minmax", "percentile", "mse", "entropy"] = "mse"
    percentile: float = 99.99
    freeze: float = 0.5
    float_layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.images >= 1, "images", "1 or more", self.images)
        require(90 <= self.percentile <= 100, "percentile", "90 to 100", self.percentile)
        require(0 <= self.freeze <= 1, "freeze", "a part of the run, 0 to 1", self.freeze)
