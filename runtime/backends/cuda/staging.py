"""Copies of a batch to the GPU and back: one stream, and for each tensor of a graph one buffer on either side."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import DTypeLike

from runtime.backends.cuda.memory import Buffer, Stream, is_pinned
from runtime.backends.protocol import BackendError, Images, RawOutputs, Stages, graph_input, output_names, raw_outputs
from runtime.card.card import Card

Tensors = Mapping[str, tuple[tuple[int, ...], DTypeLike]]
"""Shape without the batch and type of each tensor, by name."""


class Staging:
    """Buffers for `rows` images, used by one thread at a time. Their addresses never change."""

    def __init__(self, stream: Stream, card: Card, input_name: str, tensors: Tensors, rows: int):
        stream.use()
        self.stream, self.rows = stream, rows
        self.buffers = {name: Buffer((rows, *shape), dtype) for name, (shape, dtype) in tensors.items()}
        self._card, self._input = card, input_name

    def put(self, images: Images, rows: int) -> None:
        """Start copying `images` into the graph's input. The rows after them, up to `rows`, hold anything."""
        count, pixels = len(images), self.buffers[self._input]
        self.stream.use()
        if isinstance(images, np.ndarray):
            if images.flags.c_contiguous and self._card.input == "uint8-nhwc" and is_pinned(images):
                self.stream.upload(pixels, count, images.ctypes.data)  # further rows stay as they are
                return
            pixels.host[:count] = graph_input(self._card, images)
            self.stream.upload(pixels, count)
            return
        if self._card.input != "uint8-nhwc":
            reason = "frames on a device go in as they are, and this graph takes float32"
            raise BackendError(f"{reason}; export it anew without --input float-nchw")
        for row, frame in enumerate(images):
            self.stream.place(frame, pixels, row)

    def timed(self, images: Images, rows: int, work: Callable[[], object]) -> tuple[RawOutputs, dict[str, float]]:
        """`put`, `work` on the buffers, `take`, with the seconds of each; it waits for the GPU after each."""
        clock = Stages()
        self.put(images, rows)
        self.stream.wait()
        clock.lap("host to device")
        work()
        self.stream.wait()
        clock.lap("engine")
        raw = self.take(len(images), rows)
        clock.lap("device to host")
        return raw, clock.seconds

    def take(self, count: int, rows: int) -> RawOutputs:
        """Wait for the stream and copy the outputs of `rows` images; returns those of the first `count`."""
        names = output_names(self._card)
        for name in names:
            self.stream.download(self.buffers[name], rows)
        self.stream.wait()
        return raw_outputs(self._card, [self.buffers[name].host[:count].copy() for name in names])
