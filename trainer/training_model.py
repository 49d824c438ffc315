"""The network in training, and all its losses.

Only the detector is validated, averaged, deployed and exported. The modules beside it are for training only.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor, nn

from models.detector import Detector, Raw
from models.layers.heads import Head
from models.loss import detection_loss
from runtime.backends.torch.compiling import compiled
from trainer.config.extras import auxiliary_model
from trainer.config.train import TrainConfig
from trainer.data.train_set import Batch, blank_batch
from trainer.devices.depthwise import use_fast_depthwise
from trainer.devices.distributed import Group
from trainer.extras.distill import build_adapters, build_distillation
from trainer.failures import TrainingError

Outputs = tuple[Raw, list[Tensor], Raw | None]
"""The detector's output; the pyramid levels [B, teacher's channels, h, w] to compare with the teacher's, [] without
that loss; the auxiliary head's output."""


class TrainingModel(nn.Module):
    """A detector, the modules that are trained with it (adapters to a teacher, an auxiliary head; often none), and the
    losses of all of them."""

    def __init__(self, config: TrainConfig, detector: Detector, amp: torch.dtype | None, group: Group) -> None:
        """Wrap `detector`, on its device. It computes under autocast to `amp`, as one of the processes of `group`.

        Raises `ConfigError` or `CheckpointError` for a teacher that cannot teach it.
        """
        super().__init__()
        self.config, self.amp, self.group = config, amp, group
        self.detector = detector
        self.distillation = build_distillation(config, detector)
        heads = {}
        if config.auxiliary is not None:
            self.auxiliary = auxiliary_model(config.auxiliary, config.model)
            first, last = config.model.neck.levels
            heads["auxiliary"] = Head(self.auxiliary, last - first + 1)
        self.beside = nn.ModuleDict({"adapters": build_adapters(self.distillation, detector), **heads})
        self.beside.to(self.device)
        if self.device.type == "cpu":
            use_fast_depthwise(self.detector)
        self.compares_levels = self.distillation is not None and self.distillation.config.features > 0
        self._compute = compiled(self.outputs, _cannot_compile) if config.compile else self.outputs

    @property
    def device(self) -> torch.device:
        return next(self.detector.parameters()).device

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted losses of a batch on the model's device, float32 scalars by name.

        The names are cls, box, quality; with a teacher also distill, with an auxiliary head also aux. Processes that
        share a batch each give their part of the losses. A process without pictures uses a blank one, whose losses are
        0, because the others wait for it.
        """
        usable = len(batch.images) > 0
        images, boxes, labels, _, sizes_hw, regions = (
            batch if usable else blank_batch(self.config.model.input_size_hw, self.device)
        )

        def total(part: Tensor) -> Tensor:
            return self.group.total(part if usable else torch.zeros_like(part))

        with torch.autocast(images.device.type, self.amp, enabled=self.amp is not None):
            raw, levels, auxiliary = self._compute(images)
        priors = self.detector.priors((images.shape[1], images.shape[2]))
        truth = (priors, boxes, labels, sizes_hw, total)
        losses = detection_loss(self.config.model, raw, *truth, regions=regions)._asdict()
        if self.distillation is not None:
            losses["distill"] = self.distillation.loss(images, raw, levels, self.amp, total)
        if self.config.auxiliary is not None and auxiliary is not None:
            coarse = detection_loss(self.auxiliary, auxiliary, *truth, regions=regions)
            losses["aux"] = self.config.auxiliary.weight * coarse.total
        return losses if usable else {name: 0 * loss for name, loss in losses.items()}

    def outputs(self, images: Tensor) -> Outputs:
        """The outputs that the losses need, for images uint8 BGR [B, H, W, 3]."""
        if not self.compares_levels and "auxiliary" not in self.beside:
            return self.detector(images), [], None
        raw, pyramid = self.detector.with_levels(images)
        auxiliary, levels = None, pyramid if self.compares_levels else []
        if "auxiliary" in self.beside:
            logits, boxes, quality = self.beside["auxiliary"](pyramid)
            auxiliary = Raw(logits.float(), boxes.float(), None if quality is None else quality.float())
        if adapters := list(self.beside["adapters"].children()):
            levels = [adapt(level) for adapt, level in zip(adapters, levels, strict=True)]
        return raw, levels, auxiliary


def total_loss(losses: Mapping[str, Tensor]) -> Tensor:
    """The sum of the weighted `losses`, a scalar: the loss that training minimizes."""
    return reduce(torch.add, losses.values())


def _cannot_compile(reason: str) -> TrainingError:
    return TrainingError.of("compile", f"torch.compile cannot work here; set compile=false. It said: {reason}")
