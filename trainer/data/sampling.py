"""The order of training images: a pure function of the seed and the epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from runtime.datasets.annotations import ImageRecord


def repeat_factors(records: Sequence[ImageRecord], classes: int, threshold: float) -> NDArray[np.float64]:
    """[images] how often an epoch has each image, on average; 1 or more.

    Gupta, Dollar, Girshick: LVIS, 2019, section 5.1: a class c that is in the share f(c) of the images has
    r(c) = max(1, sqrt(t / f(c))), and an image has the largest r(c) of its classes. Ignored boxes do not count.
    """
    present = np.zeros((len(records), classes), bool)
    for row, record in zip(present, records, strict=True):
        row[record.labels[~record.crowd]] = True
    share = present.sum(axis=0) / max(1, len(records))
    of_class = np.maximum(1.0, np.sqrt(threshold / np.maximum(share, 1e-12)))
    return np.asarray(np.where(present, of_class, 1.0).max(axis=1, initial=1.0), np.float64)


def epoch_order(seed: int, epoch: int, images: int, factors: NDArray[np.float64] | None = None) -> list[int]:
    """Indices of the images of an epoch, in random order.

    Without `factors` each image comes once. With them, image i comes floor(r) or ceil(r) times, r on average. r is
    `factors[i]`, slightly raised so that every epoch has the same length, ceil(sum of factors). The fractions are
    rounded by systematic sampling along a random order of the images.
    """
    # Never change this seed: an old run resumes in the order that it would have had.
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    order = torch.randperm(images, generator=generator)
    if factors is None:
        return order.tolist()
    length = epoch_length(images, factors)
    ends = np.cumsum(factors[order.numpy()])
    ends *= length / ends[-1]
    ends[-1] = length
    start = float(torch.rand((), generator=generator, dtype=torch.float64))
    passed = np.floor(ends + start)
    passed[-1] = length  # start < 1
    counts = np.diff(passed, prepend=0.0).astype(np.int64)
    chosen = torch.repeat_interleave(order, torch.from_numpy(counts))
    return chosen[torch.randperm(length, generator=generator)].tolist()


def epoch_length(images: int, factors: NDArray[np.float64] | None = None) -> int:
    """Images in an epoch; the same in every one."""
    return images if factors is None else int(np.ceil(round(float(factors.sum()), 6)))


class EpochSampler(Sampler[int]):
    """`epoch_order` for a `DataLoader`. Its whole state is (seed, epoch); call `set_epoch` before iterating."""

    def __init__(self, images: int, seed: int, factors: NDArray[np.float64] | None = None) -> None:
        self.images = images
        self.seed = seed
        self.factors = factors
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return epoch_length(self.images, self.factors)

    def __iter__(self) -> Iterator[int]:
        return iter(epoch_order(self.seed, self.epoch, self.images, self.factors))
