"""Networks of random weights, for benchmarks that ask for nothing a training gives; and their checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from isodet.strict import to_mapping
from models.checkpoint import save_checkpoint
from models.config.model import ModelConfig
from models.detector import Detector
from runtime import Card
from runtime.card.card import Nms


def calm_network(config: ModelConfig) -> Detector:
    """Random weights from one seed whose residuals are small: many random layers would make chaos of a rounding."""
    torch.manual_seed(0)
    model = Detector(config)
    with torch.no_grad():
        for name, weight in model.backbone.named_parameters():
            if name.endswith(("bn2.weight", "bn3.weight")):
                weight.fill_(0.2)
    return model


def spread_network(config: ModelConfig) -> Detector:
    """The same with predictions of many sizes, in eval mode: as drawn for training, all scores are the same."""
    model = calm_network(config)
    with torch.no_grad():
        for weight in model.head.parameters():
            if weight.ndim == 4:
                weight.normal_(std=1 / weight[0].numel() ** 0.5)
    take_statistics(model)
    return model.eval()


def take_statistics(model: Detector) -> None:
    """Give the BatchNorms of a network in training the statistics of a batch of noise."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(noise(2, model.config.input_size_hw))


def noise(images: int, size_hw: tuple[int, int]) -> torch.Tensor:
    """Pictures of the shape uint8 [B, H, W, 3]."""
    return torch.randint(0, 256, (images, *size_hw, 3), dtype=torch.uint8)


def untrained(path: Path, config: ModelConfig) -> Path:
    """A checkpoint of random weights, with the statistics of a batch of noise."""
    model = calm_network(config)
    take_statistics(model)
    save_checkpoint(path, model.state_dict(), card_of(config).to_json())
    return path


def card_of(config: ModelConfig, quantization: Mapping[str, Any] | None = None) -> Card:
    """What a checkpoint of such a network says; `quantization`: of one of 8 bits."""
    post = config.postprocess
    nms: Nms = {"kind": "portable", "iou": post.nms_iou, "candidates": post.candidates, "detections": post.detections}
    return Card(
        "checkpoint", config.classes, config.input_size_hw, post.score_threshold, nms, model=to_mapping(config),
        quantization=quantization or {}, precision="int8" if quantization else "fp32",
    )  # fmt: skip
