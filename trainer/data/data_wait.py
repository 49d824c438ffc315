"""The share of training time spent waiting for pictures, and the config keys that reduce it."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch

from runtime.datasets.annotations import ImageRecord
from trainer.config.train import TrainConfig
from trainer.data.cache import reduced_hw
from trainer.devices.free_memory import available_memory
from trainer.devices.precision import worker_count

T = TypeVar("T")

TOLERATED = 0.05
"""Share of the training time that waiting may take before the log gives advice."""


def timed(batches: Iterable[T], waited: Callable[[float], None]) -> Iterator[T]:
    """The same batches; `waited` is called, for each, with the seconds until it came."""
    iterator = iter(batches)
    while True:
        start = time.monotonic()
        try:
            batch = next(iterator)
        except StopIteration:
            return
        waited(time.monotonic() - start)
        yield batch


def advice(share: float, config: TrainConfig, device: torch.device, records: Sequence[ImageRecord]) -> str:
    """Advice for the log where `share` (0..1) of the training time was waiting; '' up to `TOLERATED`."""
    if share <= TOLERATED:
        return ""
    data, ways = config.data, []
    sizes = {record.path: (record.height, record.width) for record in records}
    if data.cache == "none":
        decoded = sum(h * w * 3 for h, w in (reduced_hw(hw, data.reduce_to) for hw in sizes.values()))
        gib = math.ceil(decoded / 2**30 * 10 + 0.1) / 10  # rounded up; the table of slots takes room, too
        free = available_memory()
        kind = "ram" if free is None or decoded < 0.5 * free else "disk"
        ways.append(f"data.cache={kind} data.cache_gib={gib:g} (keeps every picture decoded)")
    workers, cores = worker_count(data.workers, device), os.cpu_count() or 1
    if workers < cores:
        beside = "; on a CPU it helps while cores are idle" if device.type == "cpu" else ""
        ways.append(f"data.workers={min(max(1, 2 * workers), cores)} (now {workers}{beside})")
    longest, side = statistics.median(max(hw) for hw in sizes.values()), 2 * max(config.model.input_size_hw)
    if not data.reduce_to and data.tiles is None and longest > side:
        ways.append(f"data.reduce_to={side} (half of the pictures are longer than {longest:.0f} px)")
    if not ways:
        ways.append("fewer augmentations, a faster disk, or a machine with more cores")
    return (
        f"waiting for pictures took {100 * share:.0f} % of the training time, more than {100 * TOLERATED:.0f} %. What "
        f"may help: {'; or '.join(ways)}"
    )
