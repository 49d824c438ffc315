"""How batches come from the loader processes: pixels in shared slots, the rest through a pipe.

torch would share each tensor of each batch as a file in /dev/shm. Where that is full, or file descriptors run out, a
thread of the loader process drops the batch, and the training waits forever. Slots are made once, need no descriptor
for each batch and are not in /dev/shm.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from runtime.images.image import Resize, ShortSide
from trainer.data.shared_memory import SharedMemory
from trainer.data.train_set import Batch, Sample, collate

PREFETCH = 4
"""Batches that a loader process works ahead."""
_SLOTS = PREFETCH + 1
"""Slots of a process. It begins its batch n + PREFETCH when its batch n is handed on. With one slot more than it works
ahead, no slot is written while it is read."""


class BatchMemory:
    """Slots for the pixels of batches, `_SLOTS` for each loader process."""

    def __init__(self, workers: int, slot_bytes: int) -> None:
        self.slot_bytes = slot_bytes
        self.name = next(_NAMES)
        self.memory = SharedMemory(workers * _SLOTS * slot_bytes)
        _OPEN[self.name] = self

    def pixels(self, slot: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """The pixels in a slot as an array of `shape`."""
        return self.memory.array(shape, np.uint8, slot * self.slot_bytes)


_NAMES = itertools.count()
_OPEN: WeakValueDictionary[int, BatchMemory] = WeakValueDictionary()
"""The slots of this process, by the name that batches carry."""


@dataclass(frozen=True, eq=False)
class SentBatch:
    """A batch on its way from a loader process, without a tensor in it: plain arrays need no shared memory."""

    memory: int
    slot: int | None
    """The slot of the pixels; None where they did not fit into one and are in `pixels`."""
    shape: tuple[int, ...]
    pixels: NDArray[np.uint8] | None
    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    image_ids: Sequence[int]
    sizes_hw: NDArray[np.int64]

    def open(self) -> Batch:
        """The batch, as a copy: the slot is written again later."""
        return self._batch(torch.from_numpy(self._pixels().copy()))

    def pin_memory(self) -> Batch:
        """The batch in pinned memory; DataLoader's thread calls it."""
        batch = self._batch(torch.from_numpy(self._pixels()).pin_memory())
        boxes, labels, sizes = (t.pin_memory() for t in (batch.boxes_xyxy, batch.labels, batch.sizes_hw))
        return batch._replace(boxes_xyxy=boxes, labels=labels, sizes_hw=sizes)

    def _pixels(self) -> NDArray[np.uint8]:
        if self.slot is None:
            assert self.pixels is not None, "pixels that are in no slot come with the batch"
            return self.pixels
        return _OPEN[self.memory].pixels(self.slot, self.shape)

    def _batch(self, images: torch.Tensor) -> Batch:
        boxes, labels, sizes = (torch.from_numpy(a) for a in (self.boxes_xyxy, self.labels, self.sizes_hw))
        return Batch(images, boxes, labels, self.image_ids, sizes)


class Collate:
    """`collate_fn` of a loader: a `Batch` in the training process itself, a `SentBatch` in a loader process."""

    def __init__(self, resize: Resize, memory: BatchMemory | None) -> None:
        self.fill_bgr = resize.fill_bgr
        self.memory = memory
        self._made = 0

    def __call__(self, samples: Sequence[Sample | None]) -> Batch | SentBatch:
        worker, memory = get_worker_info(), self.memory
        if worker is None or memory is None:
            return collate(samples, self.fill_bgr)
        slot: int | None = worker.id * _SLOTS + self._made % _SLOTS
        self._made += 1

        def place(shape: tuple[int, ...]) -> NDArray[np.uint8]:
            nonlocal slot
            if int(np.prod(shape)) > memory.slot_bytes:
                slot = None
            return np.empty(shape, np.uint8) if slot is None else memory.pixels(slot, shape)

        batch = collate(samples, self.fill_bgr, place)
        pixels: Any = batch.images.numpy()
        return SentBatch(
            memory.name, slot, pixels.shape, pixels if slot is None else None, batch.boxes_xyxy.numpy(),
            batch.labels.numpy(), batch.image_ids, batch.sizes_hw.numpy(),
        )  # fmt: skip


def collate_for(resize: Resize, images: int, workers: int) -> Collate:
    """The `collate_fn` of a loader with `workers` processes whose batches have `images` pictures under `resize`."""
    if not workers:
        return Collate(resize, None)
    if isinstance(resize, ShortSide):  # a batch may hold pictures in portrait and in landscape
        height = width = -(-resize.long // resize.multiple) * resize.multiple
    else:
        height, width = resize.size_hw
    return Collate(resize, BatchMemory(workers, images * height * width * 3))
