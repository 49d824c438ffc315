"""Requests that wait for a batch: one queue for each stream, served in turn. No threads here, and no clock."""

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


@dataclass(slots=True, eq=False)
class Request:
    """One frame, letterboxed, and who wants to know what is in it. Times are seconds of the batcher's clock."""

    image: Image | None
    """uint8 [H, W, 3], the network's input; None once it is part of a batch."""
    placement: Letterbox
    frame_hw: tuple[int, int]
    region: Region | None
    limits: float | NDArray[np.float32]
    stream: Hashable
    submitted: float
    due: float
    """When the batch starts, full or not, that this request is the first to be due of."""
    deadline: float
    """When it is no longer to be run; infinite for never."""
    future: Future[Detections]
    admitted: Future[None] | None = None
    """Resolved when a place in the queue was found, where there was none at first."""


class FairQueue:
    """Requests by stream. `pop` takes one of each stream in turn, a stream's own in the order of their coming."""

    def __init__(self) -> None:
        self._streams: dict[Hashable, deque[Request]] = {}  # its order is the turn: next first
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Request]:
        for requests in self._streams.values():
            yield from requests

    def push(self, request: Request) -> None:
        """Behind the others of its stream; a stream that had none waiting is the last in turn."""
        self._streams.setdefault(request.stream, deque()).append(request)
        self._count += 1

    def pop(self) -> Request:
        """The first of the stream whose turn it is. Raises IndexError where nothing waits."""
        if not self._streams:
            raise IndexError("nothing waits")
        stream = next(iter(self._streams))
        requests = self._streams.pop(stream)
        request = requests.popleft()
        if requests:
            self._streams[stream] = requests
        self._count -= 1
        return request

    def pop_stale(self) -> Request:
        """The oldest of the stream that has the most waiting; of equals, the oldest: what drop-oldest gives up.

        So a camera that floods loses its own frames, and each of many cameras keeps its newest.
        """
        stream = max(self._streams, key=lambda s: (len(self._streams[s]), -self._streams[s][0].submitted))
        requests = self._streams[stream]
        request = requests.popleft()
        if not requests:
            del self._streams[stream]
        self._count -= 1
        return request

    def starts_in(self, now: float, full: int) -> float | None:
        """Seconds until a batch is to start: 0 with `full` waiting or one that is due; None where nothing waits."""
        if self._count >= full:
            return 0.0
        due = min((request.due for request in self), default=None)
        return None if due is None else max(0.0, due - now)
