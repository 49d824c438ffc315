"""The training batches of an epoch, from any batch of it on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from types import FrameType
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, Sampler

from trainer.config.train import TrainConfig
from trainer.data.batch_memory import PREFETCH, collate_for
from trainer.data.batch_wait import TICK_S, Waiting, received, report_lost_batches
from trainer.data.sampling import EpochSampler, repeat_factors
from trainer.data.train_set import Batch, TrainSet, init_worker
from trainer.devices.distributed import Group
from trainer.devices.precision import worker_count


class BatchOrder(Sampler[list[int]]):
    """Batches of the indices that `sampler` draws, from batch number `start` on.

    All batches are full, so that every step weighs the same. Only where the data does not fill one, there is a single
    smaller batch. The length is that of the whole epoch, wherever it starts. With several processes a batch has
    `batch_size` indices for each, and each takes its own; of a smaller batch a process may get none.
    """

    def __init__(self, sampler: Sampler[int], batch_size: int, group: Group) -> None:
        length, size = len(sampler), batch_size * group.size  # type: ignore[arg-type]
        self._batches = BatchSampler(sampler, size, drop_last=length >= size)
        self._group = group
        self.start = 0

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in islice(iter(self._batches), self.start, None):
            yield batch[self._group.rank :: self._group.size]


@dataclass(frozen=True)
class Batches:
    """The batches of a training, epoch by epoch."""

    dataset: TrainSet
    loader: DataLoader[Any]
    """Only `begin` iterates over it: its processes send a `SentBatch`, which has to be opened."""
    order: BatchOrder
    sampler: EpochSampler

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.order)

    def begin(self, epoch: int, start: int = 0, waiting: Waiting | None = None) -> Iterator[Batch]:
        """The batches of `epoch` from number `start` on, the same at every call.

        `waiting` is called while a batch does not come. Raises what `trainer.data.batch_wait.received` raises.
        """
        self.dataset.set_epoch(epoch)
        self.sampler.set_epoch(epoch)
        self.order.start = start
        return received(self.loader, start, waiting)


def training_batches(config: TrainConfig, dataset: TrainSet, device: torch.device, group: Group) -> Batches:
    """The batches that this process of `group` trains on, read by loader processes where the config asks for them.

    `device` is the network's: pictures for a GPU come in pinned memory.
    """
    factors = None
    if config.data.sampling == "class_balanced":
        factors = repeat_factors(dataset.records, len(config.model.classes), config.data.repeat_threshold)
    sampler = EpochSampler(len(dataset), config.seed, factors)
    order = BatchOrder(sampler, config.images_per_batch, group)
    return Batches(dataset, batch_loader(config, dataset, order, device), order, sampler)


def batch_loader(
    config: TrainConfig, dataset: TrainSet, order: Sampler[list[int]], device: torch.device
) -> DataLoader[Any]:
    """A loader of the batches of `order`, with processes where the config asks for them. Read it by `received`."""
    workers = worker_count(config.data.workers, device)
    return DataLoader(
        dataset, batch_sampler=order, collate_fn=collate_for(dataset.resize, config.images_per_batch, workers),
        worker_init_fn=start_worker, num_workers=workers, persistent_workers=workers > 0,
        prefetch_factor=PREFETCH if workers else None, pin_memory=device.type == "cuda",
        timeout=TICK_S if workers else 0,
        # A generator of its own: else each iterator would advance the random numbers that the network draws from.
        generator=torch.Generator(),
    )  # fmt: skip


def start_worker(worker: int) -> None:
    """Prepare a loader process: it must outlive the signals that stop the training."""
    # Ctrl-C reaches every process of the terminal; the main one still needs batches to finish its step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # So does SIGTERM from what signals whole groups (timeout, schedulers). A second one ends the process, because that
    # is how DataLoader and multiprocessing end one that hangs.
    signal.signal(signal.SIGTERM, _last_batches)
    report_lost_batches()
    init_worker(worker)


def _last_batches(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    signal.alarm(60)  # ends a process that hangs and gets no second signal
