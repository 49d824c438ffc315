"""Images a second of several ways to run one network, at several sizes of batch."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.artifacts import Subject, frames
from benchmarks.gpu.attempts import attempt, until_one_fails
from benchmarks.gpu.stage import Row, Setting
from benchmarks.gpu.timing import turns

Run = Callable[[NDArray[np.uint8]], Any]

PYTORCH = "PyTorch fp16"
"""Whom the others are divided by."""


def speeds(
    setting: Setting, what: str, subject: Subject, batches: Sequence[int], ways: Mapping[str, Run]
) -> Iterator[Row]:
    """For each batch, what the first of `ways` reaches, the others beside it, and the first over `PYTORCH`'s.

    They are given uint8 [B, H, W, 3] in the network's size. The first batch that one of them has no room for is the
    last.
    """
    first = next(iter(ways))

    def measured(batch: int, where: str) -> Iterator[Row]:
        images = frames(subject, batch)
        calls: dict[str, Callable[[], Any]] = {name: partial(run, images) for name, run in ways.items()}
        taken = turns(calls, 0.2 if setting.small else 1.0, setting.device)
        rates = {name: batch / statistics.median(seconds) for name, seconds in taken.items()}
        note = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items() if name != first)
        yield Row(where, rates[first], "images/s", note=note)
        if PYTORCH in rates:
            yield Row(f"{where} over {PYTORCH}", rates[first] / rates[PYTORCH], "times as fast")

    yield from until_one_fails(
        attempt(setting, f"{what}, batch {batch}: {first}", 15, partial(measured, batch)) for batch in batches
    )
