"""Metrics of a batcher: counts, sizes of batches, and the latest latencies."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LATENCIES = 4096
"""The percentiles are those of so many latest answers, so that they follow the load in bounded memory."""


@dataclass(frozen=True)
class BatcherMetrics:
    """The counts of a `Batcher` at one moment. Each frame of `submitted` is in exactly one of the next ten counts."""

    submitted: int
    """Calls of `submit` and `detect` with a usable frame."""
    blocked: int
    """Frames that wait for a place in the queue."""
    waiting: int
    """Frames in the queue."""
    running: int
    """Frames in a batch that is not answered yet."""
    answered: int
    """Frames that got their detections."""
    failed: int
    """Frames that got an error of the engine."""
    dropped: int
    """Frames dropped for newer ones: `FrameDropped`."""
    expired: int
    """Frames whose deadline passed before they could run: `DeadlineExpired`."""
    cancelled: int
    """Frames whose future was cancelled before their batch started."""
    closed: int
    """Frames that had not run when the batcher closed: `BatcherClosed`."""
    refused: int
    """Frames that the full queue refused: `QueueFull`."""
    batches: int
    batch_sizes: dict[int, int]
    """The number of batches by the number of frames in them."""
    p50_ms: float | None
    """Latency of the last 4096 answers, from the call of `submit` to the answer; None before the first."""
    p95_ms: float | None
    p99_ms: float | None

    @property
    def mean_batch(self) -> float:
        """The mean number of frames in a batch; 0 before the first."""
        return sum(size * count for size, count in self.batch_sizes.items()) / self.batches if self.batches else 0.0


class Tally:
    """The running counts. It has no lock: the owner holds its own during every call."""

    def __init__(self) -> None:
        self.submitted = self.answered = self.failed = self.dropped = self.expired = 0
        self.cancelled = self.closed = self.refused = 0
        self._sizes: Counter[int] = Counter()
        self._latencies: deque[float] = deque(maxlen=LATENCIES)

    def batch(self, size: int) -> None:
        self._sizes[size] += 1

    def answers(self, latencies: Sequence[float], failed: int) -> None:
        """Count answers: `latencies` (seconds) of the frames that got detections, and how many frames got an error."""
        self.answered += len(latencies)
        self.failed += failed
        self._latencies.extend(latencies)

    def snapshot(self, blocked: int, waiting: int, running: int) -> BatcherMetrics:
        p50 = p95 = p99 = None
        if self._latencies:
            p50, p95, p99 = (np.percentile(self._latencies, [50, 95, 99]) * 1000).tolist()
        return BatcherMetrics(
            self.submitted, blocked, waiting, running, self.answered, self.failed, self.dropped, self.expired,
            self.cancelled, self.closed, self.refused, self._sizes.total(), dict(sorted(self._sizes.items())),
            p50, p95, p99,
        )  # fmt: skip
