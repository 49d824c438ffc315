"""One batch: stack the requests, run them, turn outputs into detections."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.backends.protocol import Backend, OutOfMemory, RawOutputs, rows_of
from runtime.batcher.queue import Input, Request
from runtime.detections import Detections
from runtime.images.image import FILL, Image

if TYPE_CHECKING:
    from runtime.detector import Detector

_log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """A request, and the result of its batch."""

    request: Request
    rows: list[tuple[RawOutputs, int]] | BaseException
    """For each input of the request, the outputs of the batch that it was in, and its place there."""


class Canvas:
    """The memory of a worker's batches, used again for each; page-locked where the worker's `context` is on a GPU."""

    def __init__(self, context: Backend) -> None:
        self._memory: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._context = context

    def stack(self, inputs: Sequence[Input], fixed_batch: int | None) -> Image:
        """`inputs`, all of one size, as uint8 [B, H, W, 3], padded to a fixed batch."""
        shape = (fixed_batch or len(inputs), *inputs[0].placement.size_hw, 3)
        size = math.prod(shape)
        if self._memory.size < size:
            try:
                self._memory = self._context.host_memory(size)
            except OutOfMemory as error:  # page-locked memory is faster, but not necessary
                _log.warning("batches go to %s through ordinary memory: %s", self._context.device, error)
                self._memory = np.empty(size, np.uint8)
        images = self._memory[:size].reshape(shape)
        target: Any  # by numpy's types, arrays are buffers in some releases only
        for network_input, target in zip(inputs, images, strict=False):
            if network_input.image is not None:
                source: Any = network_input.image
                memoryview(target).cast("B")[:] = memoryview(source).cast("B")
            network_input.image = None
        images[len(inputs) :] = FILL
        return images


def infer(
    detector: Detector, requests: Sequence[Request], context: Backend, canvas: Canvas, max_batch: int
) -> list[Outcome]:
    """The outcome of each request, in order. Their inputs of one size run together, up to `max_batch` at once.

    The short-side rule gives several sizes, tiles many inputs. An exception of the backend becomes the outcome of the
    requests with an input that ran in that call, and of no others.
    """
    rows: list[list[tuple[RawOutputs, int] | None]] = [[None] * len(request.inputs) for request in requests]
    errors: dict[int, BaseException] = {}
    places = [(i, k) for i, request in enumerate(requests) for k in range(len(request.inputs))]
    for size in dict.fromkeys(requests[i].inputs[k].placement.size_hw for i, k in places):
        of_size = [(i, k) for i, k in places if requests[i].inputs[k].placement.size_hw == size]
        for start in range(0, len(of_size), max_batch):
            chunk = of_size[start : start + max_batch]
            try:
                images = canvas.stack([requests[i].inputs[k] for i, k in chunk], detector.backend.fixed_batch)
                raw = detector.infer(images, context)
            except BaseException as error:  # SystemExit too: a worker that ends would leave futures without an answer
                errors |= {i: error for i, _ in chunk}
            else:
                for row, (i, k) in enumerate(chunk):
                    rows[i][k] = (raw, row)
    return [
        Outcome(request, errors[i] if i in errors else [row for row in rows[i] if row is not None])
        for i, request in enumerate(requests)
    ]


def answer(detector: Detector, outcome: Outcome) -> Detections | BaseException:
    """The detections of a request in its frame's pixels, or the exception that it met."""
    request, rows = outcome
    if isinstance(rows, BaseException):
        return rows
    try:
        parts: list[Detections] = []
        limits = detector.view_limits(request.limits)
        for (raw, row), network_input in zip(rows, request.inputs, strict=True):
            parts += detector.postprocess(rows_of(raw, slice(row, row + 1)), [network_input.placement], limits)
        detections = detector.join(parts, request.grid, request.limits)
        return detections if request.region is None else request.region.to_frame(detections, request.frame_hw)
    except Exception as error:  # outputs that are no detections
        return error
