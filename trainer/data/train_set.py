"""The training set: from COCO records to batches of network inputs and their targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from models.config.model import ModelConfig
from models.loss import REGION
from runtime.datasets.annotations import CocoDataset
from runtime.images.image import FILL, FixedSize, Image, Resize, ShortSide
from trainer.augment import augment, resized_placement, visible_boxes
from trainer.augment.pipeline import closed
from trainer.augment.sources import make_sources
from trainer.config.train import AugmentConfig
from trainer.data.cache import Pictures
from trainer.data.reader import PictureReader
from trainer.data.shared_memory import SharedMemory


class Sample(NamedTuple):
    image: Image
    """uint8 [H,W,3] BGR, the network's input."""
    boxes_xyxy: NDArray[np.float32]
    """[G,4] in input pixels."""
    labels: NDArray[np.int64]
    """[G]; `models.loss.REGION` where a box is an ignore region."""
    image_id: int


class Batch(NamedTuple):
    images: torch.Tensor
    """uint8 [B,H,W,3] BGR."""
    boxes_xyxy: torch.Tensor
    """float32 [B,G,4] in input pixels; G is the most objects in one image, 0 where there are none."""
    labels: torch.Tensor
    """int64 [B,G]; -1 where a row is padding, `models.loss.REGION` where it is an ignore region."""
    image_ids: Sequence[int]
    sizes_hw: torch.Tensor
    """int64 [B,2] pixels: the input that each picture alone would be, padding of its own included."""
    regions: bool = True
    """False where no label is `models.loss.REGION`, which saves looking for one on a GPU."""

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`. Regions are looked for while the labels are in host memory, where it costs no wait."""
        regions = bool((self.labels.numpy() == REGION).any()) if self.labels.device.type == "cpu" else self.regions
        images, boxes, labels, sizes_hw = (
            part.to(device, non_blocking=True) for part in (self.images, self.boxes_xyxy, self.labels, self.sizes_hw)
        )
        return Batch(images, boxes, labels, self.image_ids, sizes_hw, regions)


def resize_rule(model: ModelConfig) -> Resize:
    """How pictures become the input of a model of this configuration."""
    rule, mean = model.resize, model.pixels.mean
    if rule.rule == "letterbox":
        return FixedSize(model.input_size_hw)
    # The papers pad with zeros after normalization: before it, that is the mean color.
    blue, green, red = (round(v) for v in (mean if model.pixels.order == "bgr" else mean[::-1]))
    return ShortSide(rule.short, rule.long, rule.multiple, rule.rounding == "floor", (blue, green, red))


class TrainSet(Dataset["Sample | None"]):
    """Training views of a `CocoDataset`. Item i of epoch e is the same in every process and at every call.

    Crowd boxes are ignore regions, not objects; `crowds` counts them. An item whose picture cannot be used is None, and
    is logged once; `unusable` lists those that any loader process has met so far.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        resize: Resize,
        augment: AugmentConfig | None,
        seed: int = 0,
        pictures: Pictures | None = None,
        epochs: int | None = None,
    ) -> None:
        """`epochs`: of the whole training, for augmentations that end before it; None: they never end."""
        self.records = dataset.records
        self.reader = PictureReader(dataset.records, pictures or Pictures())
        self.resize = resize
        self.augment = augment
        self.seed = seed
        self.epochs = epochs
        self.crowds = sum(int(record.crowd.sum()) for record in dataset.records)
        # Shared, because persistent loader processes have a copy of this object: it must see the new epoch.
        self._shared = SharedMemory(8)
        self._sources = None if augment is None else make_sources(augment, dataset.records, self.reader)

    def plain(self) -> TrainSet:
        """The same pictures, by the same reader, without augmentation."""
        views = copy(self)
        views.augment = None
        return views

    def __len__(self) -> int:
        return len(self.records)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose random numbers are drawn; call it before the loader is iterated."""
        self._epoch[0] = epoch

    @property
    def _epoch(self) -> NDArray[np.int64]:
        return self._shared.array(1, np.int64)

    @property
    def unusable(self) -> list[Path]:
        """Pictures that could not be used so far."""
        return self.reader.unusable

    def __getitem__(self, index: int) -> Sample | None:
        image_id, picture = self.records[index].id, self.reader.read(index)
        if picture is None:
            return None
        if self.augment is None:
            placement = resized_placement(picture.size_hw, self.resize)
            boxes, keep = visible_boxes(placement.boxes(picture.boxes_xyxy), placement.size_hw, 0.0)
            return Sample(placement.apply(picture.image), boxes[keep], picture.labels[keep], image_id)
        epoch = int(self._epoch[0])
        config = self.augment if self.epochs is None else closed(self.augment, self.epochs - epoch)
        # Masked, because generators take no negative seeds.
        rng = np.random.default_rng([self.seed & 0xFFFFFFFF, epoch, index])
        return Sample(*augment(*picture, self.resize, config, rng, self._sources), image_id)


def collate(
    samples: Sequence[Sample | None],
    fill_bgr: tuple[int, int, int] = (FILL, FILL, FILL),
    place: Callable[[tuple[int, ...]], NDArray[np.uint8]] = lambda shape: np.empty(shape, np.uint8),
) -> Batch:
    """Stack samples, leaving None out and padding boxes with zeros and labels with -1.

    Pictures of different sizes are padded, right and below, with `fill_bgr` to the largest. Where every sample is
    None the batch is empty: images [0,0,0,3], boxes [0,0,4], sizes [0,2]. `place` makes the array for the pixels, of
    the shape that it is called with.
    """
    usable = [sample for sample in samples if sample is not None]
    most = max((len(sample.labels) for sample in usable), default=0)
    boxes = torch.zeros(len(usable), most, 4)
    labels = torch.full((len(usable), most), -1, dtype=torch.int64)
    for i, sample in enumerate(usable):
        boxes[i, : len(sample.labels)] = torch.from_numpy(sample.boxes_xyxy)
        labels[i, : len(sample.labels)] = torch.from_numpy(sample.labels)
    shapes = {sample.image.shape for sample in usable}
    height, width = (max((shape[axis] for shape in shapes), default=0) for axis in (0, 1))
    images = place((len(usable), height, width, 3))
    if len(shapes) == 1:
        np.stack([sample.image for sample in usable], out=images)  # copied many times as fast as it is filled
    else:
        images[:] = fill_bgr
        for image, sample in zip(images, usable, strict=True):
            image[: sample.image.shape[0], : sample.image.shape[1]] = sample.image
    sizes = torch.tensor([sample.image.shape[:2] for sample in usable], dtype=torch.int64).reshape(-1, 2)
    return Batch(torch.from_numpy(images), boxes, labels, tuple(sample.image_id for sample in usable), sizes)


def blank_batch(size_hw: tuple[int, int], device: torch.device) -> Batch:
    """A black picture of `size_hw` without an object."""
    return Batch(
        torch.zeros(1, *size_hw, 3, dtype=torch.uint8, device=device), torch.zeros(1, 0, 4, device=device),
        torch.zeros(1, 0, dtype=torch.int64, device=device), (), torch.tensor([size_hw], device=device), regions=False,
    )  # fmt: skip


def init_worker(worker: int) -> None:
    """For `DataLoader(worker_init_fn=...)`: OpenCV without threads, so that the processes share the cores.

    0, not 1: setting 1 joins OpenCV's thread pool, and in a forked process, which has inherited the pool but
    not its threads, that waits forever.
    """
    cv2.setNumThreads(0)
