"""The network in training with what learns beside it: nothing of that is validated, averaged, deployed or exported."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from models.detector import Detector as Network
from models.detector import Raw
from models.layers.heads import Head


class HelpedLosses(NamedTuple):
    """`Losses`, and the weighted ones of teacher and auxiliary head; 0 for what is not there."""

    cls: Tensor
    box: Tensor
    quality: Tensor
    distill: Tensor
    aux: Tensor

    @property
    def total(self) -> Tensor:
        return self.cls + self.box + self.quality + self.distill + self.aux


class Look(NamedTuple):
    """What training sees of B images."""

    raw: Raw
    levels: list[Tensor]
    """Pyramid levels [B, teacher's channels, h, w], where a teacher is compared with them."""
    auxiliary: Raw | None
    """The auxiliary head's answer, where there is one."""


class Learner(nn.Module):
    """A detector, and the modules that are trained with it and thrown away."""

    def __init__(self, detector: Network, adapters: nn.ModuleList, auxiliary: Head | None, levels: bool) -> None:
        """`adapters`: a 1x1 convolution per level that makes it as wide as the teacher's, or none. `auxiliary`: a head
        on the same pyramid. `levels`: whether the pyramid is asked for."""
        super().__init__()
        self.detector, self.levels = detector, levels
        self.beside = nn.ModuleDict({"adapters": adapters})
        if auxiliary is not None:
            self.beside["auxiliary"] = auxiliary

    def forward(self, images: Tensor) -> Look:
        """uint8 BGR images [B, H, W, 3] -> everything that a loss asks for."""
        if not self.levels and "auxiliary" not in self.beside:
            return Look(self.detector(images), [], None)
        raw, pyramid = self.detector.with_levels(images)
        auxiliary, adapters = None, list(self.beside["adapters"].children())
        if "auxiliary" in self.beside:
            logits, boxes, quality = self.beside["auxiliary"](pyramid)
            auxiliary = Raw(logits.float(), boxes.float(), None if quality is None else quality.float())
        levels = pyramid if self.levels else []
        if adapters:
            levels = [adapt(level) for adapt, level in zip(adapters, levels, strict=True)]
        return Look(raw, levels, auxiliary)
