"""One batch: stack the requests, run them, turn outputs into detections."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.backends.protocol import Backend, OutOfMemory, RawOutputs, rows_of
from runtime.batcher.queue import Request
from runtime.detections import Detections
from runtime.images.image import FILL, Image

if TYPE_CHECKING:
    from runtime.detector import Detector

_log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """A request, and the result of its batch."""

    request: Request
    raw: RawOutputs | BaseException
    """Of the whole batch."""
    row: int
    """The request's place in the batch."""


class Canvas:
    """The memory of a worker's batches, used again for each; page-locked where the worker's `context` is on a GPU."""

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
            except OutOfMemory as error:  # page-locked memory is faster, but not necessary
                _log.warning("batches go to %s through ordinary memory: %s", self._context.device, error)
                self._memory = np.empty(size, np.uint8)
        images = self._memory[:size].reshape(shape)
        target: Any  # by numpy's types, arrays are buffers in some releases only
        for request, target in zip(requests, images, strict=False):
            if request.image is not None:
                source: Any = request.image
                memoryview(target).cast("B")[:] = memoryview(source).cast("B")
            request.image = None
        images[len(requests) :] = FILL
        return images


def infer(detector: Detector, requests: Sequence[Request], context: Backend, canvas: Canvas) -> list[Outcome]:
    """The outcome of each request, in order. Frames of one input size run together (the short-side rule gives several).

    An exception of the backend becomes the outcome of the requests that ran together, and of no others.
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
    """The detections of a request in its frame's pixels, or the exception that it met."""
    request, raw, row = outcome
    if isinstance(raw, BaseException):
        return raw
    try:
        raw_row = rows_of(raw, slice(row, row + 1))
        (detections,) = detector.postprocess(raw_row, [request.placement], request.limits)
        return detections if request.region is None else request.region.to_frame(detections, request.frame_hw)
    except Exception as error:  # outputs that are no detections
        return error
