"""torchvision's FCOS and RetinaNet for pictures of 320 px, trained the way isodet trains and judged by its evaluation.

The networks are torchvision's own classes with isodet's backbone, the FPN width and, in FCOS, the head depth of its
digits recipe (RetinaNet's head has four convolutions and no argument for it); sizes and ranges are torchvision's
defaults, which are made for 800 px, scaled to 320.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from models.backbones import build_backbone
from models.config.model import BackboneConfig, PixelConfig
from runtime import Card, Detector
from runtime.backends.protocol import Backend, Images, RawOutputs
from runtime.card.card import Nms
from runtime.evaluation.evaluate import Evaluation, evaluate
from trainer.config.train import TrainConfig
from trainer.data.datasets import train_data, val_data
from trainer.data.loader import training_batches
from trainer.data.train_set import Batch, TrainSet, resize_rule
from trainer.devices.depthwise import use_fast_depthwise
from trainer.devices.distributed import Group
from trainer.devices.precision import pick_amp
from trainer.extras.averaging import exponential_average
from trainer.optim import Plateau, build_optimizer, build_schedule

SIZE, WIDTH, CHANNELS, DEPTH = 320, 0.5, 64, 2
DETECTIONS = 100
BACKBONE, PIXELS = BackboneConfig(name="resnet18", width=WIDTH), PixelConfig()
"""Those of the digits recipe, from scratch."""


class _Float32Loss:
    """Losses and matching in float32, as isodet's are, whatever autocast makes of the network."""

    def compute_loss(self, targets: Any, head_outputs: dict[str, Tensor], *rest: Any) -> Any:
        outputs = {name: values.float() for name, values in head_outputs.items()}
        with torch.autocast("cpu", enabled=False):
            return super().compute_loss(targets, outputs, *rest)  # type: ignore[misc]


class _Fcos(_Float32Loss, FCOS):
    pass


class _RetinaNet(_Float32Loss, RetinaNet):
    pass


class Pyramid(nn.Module):
    """A backbone of isodet under torchvision's FPN: pictures [B, 3, H, W] -> P3..P7, by name."""

    out_channels = CHANNELS

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.body = build_backbone(config)
        more = LastLevelP6P7(CHANNELS, CHANNELS)
        self.fpn = FeaturePyramidNetwork(list(self.body.channels[1:]), CHANNELS, more)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features: dict[str, Tensor] = self.fpn({str(i): c for i, c in enumerate(self.body(images)[1:])})
        return features


def torchvision_model(
    kind: str,
    classes: int,
    body: BackboneConfig = BACKBONE,
    pixels: PixelConfig = PIXELS,
    size_hw: tuple[int, int] = (SIZE, SIZE),
) -> nn.Module:
    """kind: fcos or retinanet. Labels are 0..C-1, C = `classes`. body: the backbone, with the weights that it names.

    pixels: what its weights expect, in RGB order. size_hw: of the pictures, which are not resized.
    """
    backbone = Pyramid(body)
    fixed = {
        "min_size": min(size_hw), "max_size": max(size_hw), "score_thresh": 0.05, "detections_per_img": DETECTIONS,
        "image_mean": [mean / 255 for mean in pixels.mean], "image_std": [std / 255 for std in pixels.std],
    }  # fmt: skip
    if kind == "fcos":
        # Levels take objects of 4 to 8 times these sizes: up to 32 px, 32 to 64, 64 to 128, ...; at 800 px twice that.
        anchors = AnchorGenerator(((4,), (8,), (16,), (32,), (64,)), ((1.0,),) * 5)
        head = FCOSHead(CHANNELS, 1, classes, num_convs=DEPTH)
        return _Fcos(backbone, classes, anchor_generator=anchors, head=head, **fixed)
    sizes = tuple(tuple(int(side * 2 ** (i / 3)) for i in range(3)) for side in (16, 32, 64, 128, 256))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
    # As in torchvision's second version: GroupNorm and GIoU, without which it does not train from scratch.
    head = RetinaNetHead(CHANNELS, 9, classes, norm_layer=lambda channels: nn.GroupNorm(32, channels))
    head.regression_head._loss_type = "giou"
    return _RetinaNet(backbone, classes, anchor_generator=anchors, head=head, **fixed)


def torchvision_inputs(batch: Batch) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Pictures [3, H, W] RGB from 0 to 1, and targets without ignored objects and padding."""
    images = [image.permute(2, 0, 1).flip(0).float().div(255) for image in batch.images]
    targets = [
        {"boxes": boxes[labels >= 0], "labels": labels[labels >= 0]}
        for boxes, labels in zip(batch.boxes_xyxy, batch.labels, strict=True)
    ]
    return images, targets


class TorchvisionBackend(Backend):
    """A torchvision detector behind isodet's `Detector`, so that the same evaluation judges it."""

    name, device, max_batch = f"torchvision {torchvision.__version__}", "cpu", 8
    fixed_batch: int | None = None

    def __init__(self, model: nn.Module, card: Card) -> None:
        self.model, self.card = model.eval(), card

    @torch.inference_mode()
    def __call__(self, images: Images) -> RawOutputs:
        found = self.model([torch.from_numpy(image).permute(2, 0, 1).flip(0).float().div(255) for image in images])
        size = (len(images), DETECTIONS)
        counts = np.zeros((len(images), 1), np.int32)
        raw = RawOutputs(
            counts, np.zeros((*size, 4), np.float32), np.zeros(size, np.float32),
            np.zeros(size, np.int32),
        )  # fmt: skip
        for i, one in enumerate(found):
            order = one["scores"].argsort(descending=True, stable=True)
            counts[i] = n = len(order)
            raw.boxes[i, :n], raw.scores[i, :n], raw.labels[i, :n] = (
                one[key][order].numpy() for key in ("boxes", "scores", "labels")
            )
        return raw


def train_torchvision(
    kind: str, config: TrainConfig, weights: Path, progress: Callable[[int, int], None]
) -> Evaluation:
    """Train by `config`'s data, augmentation, optimizer, schedule, precision and averaging; keeps the last weights."""
    torch.manual_seed(config.seed)
    device, group = torch.device("cpu"), Group(0, 1)
    samples = TrainSet(train_data(config), resize_rule(config.model), config.augment, config.seed)
    batches = training_batches(config, samples, device, group)
    network = config.model
    model = torchvision_model(kind, len(network.classes), network.backbone, network.pixels, network.input_size_hw)
    model = model.to(memory_format=torch.channels_last)
    use_fast_depthwise(model)  # the same numbers in less time
    optimizer = build_optimizer(model, config.optim)
    total = len(batches) * config.schedule.epochs
    schedule = build_schedule(optimizer, total, config.schedule, Plateau())
    average = exponential_average(model, config.optim.ema) if config.optim.ema else None
    amp = pick_amp(config.amp, device)
    done = 0
    for epoch in range(config.schedule.epochs):
        model.train()
        for batch in batches.begin(epoch):
            with torch.autocast("cpu", amp, enabled=amp is not None):
                losses = model(*torchvision_inputs(batch))
            sum(losses.values()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            if average is not None:
                average.update_parameters(model)
            done += 1
            progress(done, total)
    final = model if average is None else average.module
    torch.save(final.state_dict(), weights)
    nms: Nms = {"kind": "portable", "iou": 0.5, "candidates": 1000, "detections": DETECTIONS}
    card = Card("checkpoint", config.model.classes, config.model.input_size_hw, 0.05, nms)
    return evaluate(Detector(TorchvisionBackend(final, card)), val_data(config))
