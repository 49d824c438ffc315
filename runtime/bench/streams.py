"""Several streams through a batcher: its highest rate, and the latency of a frame at a lower load."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runtime.backends.protocol import BackendError
from runtime.batcher.batcher import Batcher
from runtime.batcher.metrics import BatcherMetrics
from runtime.detector import Detector
from runtime.images.image import Image

LOAD = 0.8
"""The share of the highest rate at which latencies are measured: at the highest rate, the full queue sets them all."""


@dataclass(frozen=True)
class StreamTiming:
    """The timing of a number of streams at one batch size."""

    streams: int
    batch_size: int
    """Most frames in a batch."""
    images_per_s: float
    """With every stream submitting as fast as it can."""
    of_bare: float
    """`images_per_s` divided by the images per second of the engine alone with full batches, in the same run."""
    mean_batch: float
    offered_per_s: float
    """The rate of all streams together, evenly, at which latencies were measured: `LOAD` of `images_per_s`."""
    p50_ms: float
    p95_ms: float
    p99_ms: float


def time_streams(
    detector: Detector, frames: Sequence[Image], streams: int, batch: int, max_wait_ms: float, seconds: float,
    bare_per_s: float,
) -> StreamTiming:  # fmt: skip
    """Time `streams` threads on one batcher: for `seconds` as fast as they can, then as long at `LOAD` of that rate.

    Stream s submits `frames[s % len(frames)]`. Raises `BackendError` where a frame got no answer.
    """

    def batcher() -> Batcher:
        return detector.batcher(max_batch=batch, max_wait_ms=max_wait_ms, queue=max(64, 2 * batch))

    full, rate = saturated(batcher, frames, streams, seconds)
    offered = LOAD * rate
    calm = paced(batcher, frames, streams, seconds, offered)
    latencies = calm.p50_ms or 0.0, calm.p95_ms or 0.0, calm.p99_ms or 0.0
    return StreamTiming(streams, batch, rate, rate / bare_per_s, full.mean_batch, offered, *latencies)


def saturated(
    make: Callable[[], Batcher], frames: Sequence[Image], streams: int, seconds: float
) -> tuple[BatcherMetrics, float]:
    """`streams` threads that submit whenever the queue has a place; returns also the frames answered in a second."""
    begun = time.perf_counter()

    def camera(batcher: Batcher, stream: int) -> None:
        while time.perf_counter() - begun < seconds:
            batcher.submit(frames[stream % len(frames)], stream)

    metrics = _run(make, camera, streams)
    return metrics, metrics.answered / (time.perf_counter() - begun)


def paced(
    make: Callable[[], Batcher], frames: Sequence[Image], streams: int, seconds: float, rate: float
) -> BatcherMetrics:
    """`streams` threads that together submit `rate` frames a second, evenly, each at least one."""
    begun = time.perf_counter()

    def camera(batcher: Batcher, stream: int) -> None:
        for k in range(max(1, round(rate * seconds / streams))):
            time.sleep(max(0.0, begun + (k + stream / streams) * streams / rate - time.perf_counter()))
            batcher.submit(frames[stream % len(frames)], stream)

    return _run(make, camera, streams)


def _run(make: Callable[[], Batcher], camera: Callable[[Batcher, int], None], streams: int) -> BatcherMetrics:
    """Run a `camera` thread for each stream on a new batcher. Raises `BackendError` where a frame got no answer."""
    with make() as batcher:
        threads = [threading.Thread(target=camera, args=(batcher, stream)) for stream in range(streams)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    metrics = batcher.metrics()
    if metrics.answered != metrics.submitted:
        raise BackendError(f"{metrics.submitted - metrics.answered} of {metrics.submitted} frames were not answered")
    return metrics
