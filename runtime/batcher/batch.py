"""One batch: requests stacked, run, and their outputs turned into answers."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isodet.errors import ArgumentError
from runtime.backends.protocol import Backend, OutOfMemory, RawOutputs, rows_of
from runtime.batcher.queue import Request
from runtime.detections import Detections
from runtime.images.frames import Color, Frame, load_frame
from runtime.images.image import FILL, Image
from runtime.images.region import Region, Roi

if TYPE_CHECKING:
    from runtime.detector import Detector, Threshold

_log = logging.getLogger(__name__)


def prepare(
    detector: Detector,
    max_wait_ms: float,
    now: float,
    frame: Frame,
    stream: Hashable,
    deadline_ms: float | None,
    threshold: Threshold | None,
    color: Color,
    roi: Roi | None,
) -> Request:
    """The request of one frame that came at `now` (seconds): read, checked and letterboxed.

    Raises `FrameError`, `ImageError`, or ValueError for the other arguments.
    """
    if deadline_ms is not None and not deadline_ms >= 0:
        raise ArgumentError.of("deadline_ms", f"expected milliseconds from 0, got {deadline_ms}")
    limits = detector.threshold if threshold is None else detector.limits(threshold)
    region = None if roi is None else Region.of(roi)
    image, frame_hw = load_frame(frame, 0, color, region)
    placement = detector.place(image)
    wait_ms, deadline = max_wait_ms, math.inf
    if deadline_ms is not None:
        # Waiting for company takes at most half of it, or a lone frame with a short deadline would never run.
        wait_ms, deadline = min(wait_ms, deadline_ms / 2), now + deadline_ms / 1000
    due = now + wait_ms / 1000
    return Request(placement.apply(image), placement, frame_hw, region, limits, stream, now, due, deadline, Future())


class Outcome(NamedTuple):
    """What the engine said of a request."""

    request: Request
    raw: RawOutputs | BaseException
    """Of the whole batch."""
    row: int
    """The request's in it."""


class Canvas:
    """A worker's batch, whose memory serves the next one too; page-locked where the worker's `context` is on a GPU."""

    def __init__(self, context: Backend) -> None:
        self._memory: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._context = context

    def stack(self, requests: Sequence[Request], fixed_batch: int | None) -> Image:
        """The inputs of `requests`, all of one size, as uint8 [B, H, W, 3], padded to a fixed batch."""
        shape = (fixed_batch or len(requests), *requests[0].placement.size_hw, 3)
        size = math.prod(shape)
        if self._memory.size < size:
            try:
                self._memory = self._context.host_memory(size)
            except OutOfMemory as error:  # page-locked memory is a gain of speed, not a need
                _log.warning("batches go to %s through ordinary memory: %s", self._context.device, error)
                self._memory = np.empty(size, np.uint8)
        images = self._memory[:size].reshape(shape)
        target: Any  # numpy's types call arrays buffers in some releases only
        for request, target in zip(requests, images, strict=False):
            if request.image is not None:
                source: Any = request.image
                memoryview(target).cast("B")[:] = memoryview(source).cast("B")
            request.image = None
        images[len(requests) :] = FILL
        return images


def infer(detector: Detector, requests: Sequence[Request], context: Backend, canvas: Canvas) -> list[Outcome]:
    """The outcome of each request, in order. Frames of one input size run together: all, unless under short-side.

    Whatever a backend raises is the outcome of the requests that ran together, and of no other.
    """
    outcomes: list[Outcome | None] = [None] * len(requests)
    for size in dict.fromkeys(request.placement.size_hw for request in requests):
        rows = [i for i, request in enumerate(requests) if request.placement.size_hw == size]
        raw: RawOutputs | BaseException
        try:
            images = canvas.stack([requests[i] for i in rows], detector.backend.fixed_batch)
            raw = detector.infer(images, context)
        except BaseException as error:  # SystemExit too: a worker that ends would leave futures without an answer
            raw = error
        for row, i in enumerate(rows):
            outcomes[i] = Outcome(requests[i], raw, row)
    return [outcome for outcome in outcomes if outcome is not None]


def answer(detector: Detector, outcome: Outcome) -> Detections | BaseException:
    """The detections of a request in its frame's pixels, or what went wrong."""
    request, raw, row = outcome
    if isinstance(raw, BaseException):
        return raw
    try:
        one = rows_of(raw, slice(row, row + 1))
        (found,) = detector.postprocess(one, [request.placement], request.limits)
        return found if request.region is None else request.region.to_frame(found, request.frame_hw)
    except Exception as error:  # outputs that are no detections
        return error
