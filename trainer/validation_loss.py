"""The loss on the validation pictures: the training's own loss, without augmentation and without learning."""

from __future__ import annotations

import torch
from torch.utils.data import BatchSampler, SequentialSampler

from models.detector import Detector
from models.loss import Losses, detection_loss
from runtime.datasets.annotations import CocoDataset
from trainer.config.train import TrainConfig
from trainer.data.batch_wait import Waiting, received
from trainer.data.loader import batch_loader
from trainer.data.tiles import in_tiles
from trainer.data.train_set import TrainSet, resize_rule


@torch.no_grad()
def validation_losses(
    config: TrainConfig, model: Detector, val: CocoDataset, device: torch.device, amp: torch.dtype | None,
    waiting: Waiting | None = None,
) -> Losses:  # fmt: skip
    """Mean losses over the readable pictures of `val`, as mmdetection's workflow of train and val has them.

    Batches are as large as in training, and the mean weighs them by their pictures. The network computes in eval mode,
    as it is evaluated and deployed, and then returns to its mode. No global random numbers are drawn, so that a
    training ends with the same weights with and without it. The losses are NaN where no picture can be used.
    """
    dataset = TrainSet(in_tiles(val, config), resize_rule(config.model), None)
    order = BatchSampler(SequentialSampler(dataset), config.images_per_batch, drop_last=False)
    loader = batch_loader(config, dataset, order, device)
    training = model.training
    model.eval()
    total, images = torch.zeros(3, device=device), 0
    for batch in received(loader, waiting=waiting):
        if len(batch.images):
            pictures = batch.images.to(device)
            with torch.autocast(device.type, amp, enabled=amp is not None):
                raw = model(pictures)
            grid = model.priors((pictures.shape[1], pictures.shape[2]))
            boxes, labels, sizes = (part.to(device) for part in (batch.boxes_xyxy, batch.labels, batch.sizes_hw))
            losses = detection_loss(config.model, raw, grid, boxes, labels, sizes)
            total += torch.stack(list(losses)) * len(pictures)
            images += len(pictures)
    model.train(training)
    return Losses(*(total / images if images else total + torch.nan))
