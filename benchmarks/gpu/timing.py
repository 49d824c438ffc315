"""Times of calls that take turns, with the device waited for."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

WARMUP = 3


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def turns(
    calls: Mapping[str, Callable[[], Any]], seconds: float, device: str, least: int = 5, warmup: int = WARMUP
) -> dict[str, list[float]]:
    """Seconds of each of `calls`, which take turns for `seconds` and at least `least` times, after `warmup` untimed.

    Turns, so that a slow moment of the machine meets all of them.
    """
    for call in calls.values():
        for _ in range(warmup):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    begun = time.perf_counter()
    while len(next(iter(times.values()))) < least or time.perf_counter() - begun < seconds:
        for name, call in calls.items():
            synchronize(device)
            started = time.perf_counter()
            call()
            synchronize(device)
            times[name].append(time.perf_counter() - started)
    return times


def median(call: Callable[[], Any], seconds: float, device: str, least: int = 5) -> float:
    """Median seconds of one call."""
    return statistics.median(turns({"call": call}, seconds, device, least)["call"])


def ratio(over: list[float], under: list[float]) -> float:
    """Median of the turns' ratios."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))
