"""Several streams through a batcher: how many frames it gets through, and how long one takes under a bearable load."""

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
"""Of the rate that was reached, where latencies are measured: a queue that is always full has only one latency."""


@dataclass(frozen=True)
class StreamTiming:
    """A number of streams at one batch size."""

    streams: int
    batch_size: int
    """Most frames in a batch."""
    images_per_s: float
    """Every stream submits as fast as it may."""
    of_bare: float
    """That over the images per second of the engine alone with full batches, in the same run."""
    mean_batch: float
    offered_per_s: float
    """Together, evenly: `LOAD` of `images_per_s`. The latencies are of this."""
    p50_ms: float
    p95_ms: float
    p99_ms: float


def time_streams(
    detector: Detector, frames: Sequence[Image], streams: int, batch: int, max_wait_ms: float, seconds: float,
    bare_per_s: float,
) -> StreamTiming:  # fmt: skip
    """`streams` threads into one batcher: `seconds` as fast as they may, then as long at `LOAD` of that.

    Stream s submits `frames[s % len(frames)]`. Raises `BackendError` where a frame was not answered.
    """

    def batcher() -> Batcher:
        return detector.batcher(max_batch=batch, max_wait_ms=max_wait_ms, queue=max(64, 2 * batch))

    full, rate = saturated(batcher, frames, streams, seconds)
    offered = LOAD * rate
    calm = paced(batcher, frames, streams, seconds, offered)
    return StreamTiming(
        streams, batch, rate, rate / bare_per_s, full.mean_batch, offered,
        calm.p50_ms or 0.0, calm.p95_ms or 0.0, calm.p99_ms or 0.0,
    )  # fmt: skip


def saturated(
    make: Callable[[], Batcher], frames: Sequence[Image], streams: int, seconds: float
) -> tuple[BatcherMetrics, float]:
    """S threads that submit whenever the queue has a place; and the frames answered in a second."""
    begun = time.perf_counter()

    def camera(stream: int) -> None:
        frame = frames[stream % len(frames)]
        while time.perf_counter() - begun < seconds:
            batcher.submit(frame, stream)

    with make() as batcher:
        _run_all(camera, streams)
    metrics = _checked(batcher)
    return metrics, metrics.answered / (time.perf_counter() - begun)


def paced(
    make: Callable[[], Batcher], frames: Sequence[Image], streams: int, seconds: float, rate: float
) -> BatcherMetrics:
    """S threads that together submit `rate` frames a second, evenly, each at least one."""
    begun = time.perf_counter()

    def camera(stream: int) -> None:
        frame = frames[stream % len(frames)]
        for k in range(max(1, round(rate * seconds / streams))):
            pause = begun + (k + stream / streams) * streams / rate - time.perf_counter()
            if pause > 0:
                time.sleep(pause)
            batcher.submit(frame, stream)

    with make() as batcher:
        _run_all(camera, streams)
    return _checked(batcher)


def _checked(batcher: Batcher) -> BatcherMetrics:
    metrics = batcher.metrics()
    if metrics.answered != metrics.submitted:
        raise BackendError(f"{metrics.submitted - metrics.answered} of {metrics.submitted} frames were not answered")
    return metrics


def _run_all(camera: Callable[[int], None], streams: int) -> None:
    threads = [threading.Thread(target=camera, args=(stream,)) for stream in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
