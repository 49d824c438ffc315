"""Requests that wait for a batch: a queue for each stream, which take turns. No threads here, and no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.detections import Detections
from runtime.images.image import Image, Letterbox
from runtime.images.region import Region
from runtime.tiles import Grid


@dataclass(slots=True, eq=False)
class Input:
    """What goes into the network at once: a letterboxed frame, or one of its tiles."""

    image: Image | None
    """uint8 [H, W, 3]; None when it was copied into a batch."""
    placement: Letterbox


class DetectionFuture(Future[Detections]):
    """The future of a frame's detections, and when its batch ran, in seconds of `time.monotonic`.

    started: when its batch left the queue; None before that.
    finished: when the engine was done with that batch; None before that.
    """

    def __init__(self) -> None:
        super().__init__()
        self.started: float | None = None
        self.finished: float | None = None


@dataclass(slots=True, eq=False)
class Request:
    """One frame, and the future of its detections. Times are seconds of the batcher's clock."""

    inputs: list[Input]
    """One for each window of `grid`."""
    grid: Grid
    frame_hw: tuple[int, int]
    region: Region | None
    limits: float | NDArray[np.float32]
    stream: Hashable
    submitted: float
    due: float
    """From this time on a batch starts with it, even one that is not full."""
    deadline: float
    """From this time on it is not run any more; may be infinite."""
    future: DetectionFuture
    admitted: Future[None] | None = None
    """Where the queue was full: it resolves when the request gets a place."""


class FairQueue:
    """Requests by stream. `pop` takes from each stream in turn, and within a stream the oldest."""

    def __init__(self) -> None:
        self._streams: dict[Hashable, deque[Request]] = {}  # the stream whose turn is next comes first
        self._count = 0
        self.inputs = 0
        """The number of inputs of the network in all requests."""

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Request]:
        for requests in self._streams.values():
            yield from requests

    def push(self, request: Request) -> None:
        """Add behind the others of its stream; a stream without waiting requests gets the last turn."""
        self._streams.setdefault(request.stream, deque()).append(request)
        self._count += 1
        self.inputs += len(request.inputs)

    def pop(self) -> Request:
        """The first of the stream whose turn it is. Raises IndexError where nothing waits."""
        if not self._streams:
            raise IndexError("nothing waits")
        stream = next(iter(self._streams))
        request = self._pop_of(stream)
        if stream in self._streams:
            self._streams[stream] = self._streams.pop(stream)
        return request

    def pop_stale(self) -> Request:
        """The request that drop_oldest drops: the oldest of the stream with the most; of such streams, the oldest.

        So a camera that sends too much loses its own frames, and each of many cameras keeps its newest.
        """
        return self._pop_of(max(self._streams, key=lambda s: (len(self._streams[s]), -self._streams[s][0].submitted)))

    def _pop_of(self, stream: Hashable) -> Request:
        requests = self._streams[stream]
        request = requests.popleft()
        if not requests:
            del self._streams[stream]
        self._count -= 1
        self.inputs -= len(request.inputs)
        return request

    def starts_in(self, now: float, full: int) -> float | None:
        """Seconds until a batch is to start: 0 where `full` inputs wait or one is due; None where none waits."""
        if self.inputs >= full:
            return 0.0
        due = min((request.due for request in self), default=None)
        return None if due is None else max(0.0, due - now)
