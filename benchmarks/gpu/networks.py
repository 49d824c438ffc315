"""The networks and scenes that several stages measure: random weights, noise for pictures, boxes drawn from a seed.

What stages need without the trainer, whose packages a bare machine may lack; its steps are in `training_steps`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.untrained import card_of
from models.config.model import ModelConfig, model_config
from models.deploy.graph import Deploy
from models.detector import Detector
from runtime.backends.options import BackendOptions
from runtime.backends.torch.backend import TorchBackend

R50: dict[str, Any] = {
    "classes": [f"class{i}" for i in range(80)], "input_size_hw": [800, 1344],
    "backbone": {"name": "resnet50", "weights": None}, "neck": {"channels": 256, "levels": [3, 7]},
    "head": {"depth": 4, "norm": "gn"}, "postprocess": {"candidates": 1000, "detections": 100},
}  # fmt: skip
"""The published ATSS: 1333 pixels are padded to a multiple of 32."""
R18: dict[str, Any] = {
    "classes": [f"class{i}" for i in range(10)], "input_size_hw": [320, 320], "backbone": {"name": "resnet18"},
    "neck": {"channels": 64, "levels": [3, 7]}, "head": {"depth": 2, "norm": "gn"},
    "postprocess": {"candidates": 300, "detections": 100},
}  # fmt: skip
SMALL_R50: dict[str, Any] = {**R50, "input_size_hw": [128, 160]}
TINY: dict[str, Any] = {**R18, "input_size_hw": [128, 128], "backbone": {"name": "resnet18", "width": 0.25}}
"""Where only the way is rehearsed."""


def network_config(base: Mapping[str, Any], detector: str = "atss", **changes: Any) -> ModelConfig:
    """`base` as one of the three detectors, with other keys of the model laid on top."""
    return model_config({**base, "detector": detector, **changes})


def label(config: ModelConfig) -> str:
    """Such as 'resnet50 800x1344'."""
    height, width = config.input_size_hw
    return f"{config.backbone.name} {height}x{width}"


@dataclass(frozen=True)
class Scene:
    """Pictures and their objects."""

    images: Tensor
    """uint8 [B, H, W, 3]"""
    boxes_xyxy: Tensor
    """float32 [B, G, 4]"""
    labels: Tensor
    """int64 [B, G]"""

    def repeated(self, images: int) -> Scene:
        """The same pictures over and over, so many of them."""
        times = -(-images // len(self.images))
        images_of, boxes, labels = (t.repeat(times, *[1] * (t.ndim - 1))[:images] for t in
                                    (self.images, self.boxes_xyxy, self.labels))  # fmt: skip
        return Scene(images_of, boxes, labels)


def random_scene(images: int, size_hw: tuple[int, int], classes: int, boxes: int = 8, seed: int = 0) -> Scene:
    """Noise with `boxes` objects in each picture: sides from 16 pixels to half of the picture's."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size_hw
    pixels = torch.randint(0, 256, (images, height, width, 3), dtype=torch.uint8, generator=generator)
    limit = torch.tensor([width, height], dtype=torch.float32)
    sides = 16 + torch.rand(images, boxes, 2, generator=generator) * (limit / 2 - 16)
    corner = torch.rand(images, boxes, 2, generator=generator) * (limit - sides)
    labels = torch.randint(0, classes, (images, boxes), generator=generator)
    return Scene(pixels, torch.cat([corner, corner + sides], dim=2), labels)


def backend(model: Detector, device: str, options: BackendOptions | None = None) -> TorchBackend:
    """The runtime's PyTorch backend around a network that was never trained."""
    deploy = Deploy(model.eval())
    return TorchBackend(deploy, card_of(model.config), device, options or BackendOptions())


def forward_flops(model: Detector) -> float:
    """Floating-point operations of one picture of the configured size, forward; a training step has three times them.

    Convolutions and matrix products, a multiplication and an addition being two.
    """
    height, width = model.config.input_size_hw
    device = next(model.parameters()).device
    was_training = model.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, height, width, 3, dtype=torch.uint8, device=device))
    model.train(was_training)
    return float(counter.get_total_flops())
