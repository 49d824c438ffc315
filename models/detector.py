"""A detector: pixels, backbone, neck, head. Its loss is in `models.loss`, its decoding in `models.deploy`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.backbones import build_backbone
from models.config.model import ModelConfig, PixelConfig
from models.layers.heads import Head
from models.layers.necks import build_neck
from models.priors import Priors, feature_sizes, priors


class Raw(NamedTuple):
    """The network's output for N priors, in training and inference; float32 whatever the network's precision."""

    logits: Tensor  # [B, N, C]
    boxes: Tensor  # [B, N, 4] codes, or [B, N, 4 * bins] of dfl, see models.coders
    quality: Tensor | None  # [B, N] logits


class Pixels(nn.Module):
    """Camera pixels to network input: uint8 [B, H, W, 3] BGR -> float32 [B, 3, H, W], ordered and normalized."""

    scale: Tensor
    shift: Tensor

    def __init__(self, config: PixelConfig):
        super().__init__()
        self.flip = config.order == "rgb"
        mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (config.mean, config.std))
        self.register_buffer("scale", (1 / std).float(), persistent=False)
        self.register_buffer("shift", (-mean / std).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.normalized(images.float().permute(0, 3, 1, 2))

    def normalized(self, x: Tensor) -> Tensor:
        """Float32 BGR pixels [B, 3, H, W], 0 to 255 -> network input [B, 3, H, W]."""
        if self.flip:
            x = x.flip(1)
        return torch.addcmul(self.shift, x, self.scale)  # (x - mean) / std in one pass


class Detector(nn.Module):
    """uint8 BGR images [B, H, W, 3] -> `Raw`, in train and eval mode; `detection_loss` and `Deploy` read it."""

    def __init__(self, config: ModelConfig, load_weights: bool = True):
        super().__init__()
        self.config = config
        first, last = config.neck.levels
        self.pixels = Pixels(config.pixels)
        self.backbone = build_backbone(config.backbone, load_weights)
        self.neck = build_neck(config.neck, self.backbone.channels)
        self.head = Head(config, last - first + 1)
        self._priors: dict[tuple[tuple[int, int], torch.device], Priors] = {}

    def forward(self, images: Tensor) -> Raw:
        return self.network(self.pixels(images))

    def network(self, x: Tensor) -> Raw:
        """Normalized float images [B, 3, H, W] -> `Raw`."""
        return self.read(self.neck(self.backbone(x)))

    def with_levels(self, images: Tensor) -> tuple[Raw, list[Tensor]]:
        """`forward`, and the L pyramid levels [B, c, h, w] that the head read. Not for a `QuantDetector`."""
        levels = list(self.neck(self.backbone(self.pixels(images))))
        return self.read(levels), levels

    def read(self, levels: Sequence[Tensor]) -> Raw:
        """L pyramid levels [B, c, h, w] -> `Raw`."""
        logits, boxes, quality = self.head(levels)
        return Raw(logits.float(), boxes.float(), None if quality is None else quality.float())

    def priors(self, size_hw: tuple[int, int] | None = None) -> Priors:
        """The priors for images of `size_hw` (None: the configured size), on the model's device."""
        size_hw = size_hw or self.config.input_size_hw
        device = self.pixels.scale.device
        if (size_hw, device) not in self._priors:
            first, last = self.config.neck.levels
            strides = [2**level for level in range(first, last + 1)]
            with torch.inference_mode(False):  # the kept priors must be usable in training later
                grid = priors(feature_sizes(size_hw, (first, last)), strides, self.config.anchors, input_hw=size_hw)
                self._priors[size_hw, device] = grid.to(device)
        return self._priors[size_hw, device]
