"""CUDA graphs of a PyTorch module: the GPU's work for a batch of one size, recorded once and replayed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.backends.cuda.batch_sizes import bucket_of
from runtime.backends.protocol import BackendError

WARM_UP = 2
"""Runs before a recording, which do what is done once for a size: kernels are loaded and algorithms chosen."""

RECORDING = threading.Lock()
"""Held by a thread that records, and by one that gives memory back: PyTorch does one of them at a time."""

Run = Callable[[Tensor], Sequence[Tensor]]
"""Images uint8 [B, H, W, 3] on the device -> outputs [B, ...]."""


@dataclass(frozen=True)
class Recorded:
    """The work for one size of batch, at addresses of its own."""

    graph: torch.cuda.CUDAGraph
    images: Tensor
    """uint8 [rows, H, W, 3], what a replay reads"""
    outputs: tuple[Tensor, ...]
    """[rows, ...] each; the next replay of any recording beside it may write over them"""

    def replay(self, count: int) -> tuple[Tensor, ...]:
        """Start the work on the current stream; the outputs of the first `count` images."""
        self.graph.replay()
        return tuple(output[:count] for output in self.outputs)


class RecordedModule:
    """A module's recordings, one for each size of `runtime.backends.cuda.batch_sizes`. One call at a time (`turn`).

    They share their scratch memory, and read the weights where they lay when they were made: new values show, a weight
    that was put elsewhere does not.
    """

    def __init__(
        self,
        name: str,
        frame_hw: tuple[int, int],
        device: torch.device,
        stream: torch.cuda.Stream,
    ):
        """name: of who runs it, for messages. stream: the current one of every call here."""
        self.turn = threading.Lock()
        self._name, self._frame_hw = name, frame_hw
        self._device, self._stream = device, stream
        self._pool = torch.cuda.graph_pool_handle()
        self._of: dict[int, Recorded] = {}

    def of(self, count: int, run: Run) -> Recorded:
        """The recording of `run` for `count` images, or more where `count` is between two sizes; made at the first one.

        Raises `torch.OutOfMemoryError`, or `BackendError` for what cannot be recorded.
        """
        rows = bucket_of(count)
        if rows not in self._of:
            self._of[rows] = self._record(rows, run)
        return self._of[rows]

    def _record(self, rows: int, run: Run) -> Recorded:
        images = torch.zeros(rows, *self._frame_hw, 3, dtype=torch.uint8, device=self._device)
        for _ in range(WARM_UP):  # and memory that is short is found out here, where it spoils nothing
            run(images)
        graph = torch.cuda.CUDAGraph()
        try:
            with (
                RECORDING,
                # Only for this thread: other workers go on allocating meanwhile.
                torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
            ):
                outputs = tuple(run(images))
        except RuntimeError as error:
            # The end of a recording that broke off complains, too, and would hide why.
            cause = error if isinstance(error, torch.OutOfMemoryError) else error.__context__
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
            said = str(cause or error).strip().partition("\n")[0]
            raise BackendError.of(
                "cuda_graphs", f"{self._name} cannot record a batch of {rows}: {said}; run it without cuda_graphs"
            ) from error
        return Recorded(graph, images, outputs)
