"""CUDA graphs of a PyTorch module: the GPU's work for one batch size, recorded once and replayed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.backends.cuda.batch_sizes import bucket_of
from runtime.backends.protocol import BackendError

WARM_UP = 2
"""Runs before a recording: in the first runs of a size, PyTorch loads kernels and chooses algorithms."""

RECORDING = threading.Lock()
"""Held while recording, and while freeing cached memory: PyTorch does only one of them at a time."""

Run = Callable[[Tensor], Sequence[Tensor]]
"""Images uint8 [B, H, W, 3] on the device -> outputs [B, ...]."""


@dataclass(frozen=True)
class Recorded:
    """The recorded work for one batch size, with memory of its own."""

    graph: torch.cuda.CUDAGraph
    images: Tensor
    """uint8 [rows, H, W, 3], which a replay reads"""
    outputs: tuple[Tensor, ...]
    """[rows, ...] each; the next replay of any recording of the same `RecordedModule` may overwrite them"""

    def replay(self, count: int) -> tuple[Tensor, ...]:
        """Start the work on the current stream; returns the outputs of the first `count` images."""
        self.graph.replay()
        return tuple(output[:count] for output in self.outputs)


class RecordedModule:
    """A module's recordings, one for each size of `runtime.backends.cuda.batch_sizes`. Hold `turn` during a call.

    All recordings share their scratch memory. They read the weights at the addresses that these had while recording:
    new values in the same memory count, a weight that was moved does not.

    name: the backend's, for messages.
    stream: the current stream of every call.
    """

    def __init__(self, name: str, frame_hw: tuple[int, int], device: torch.device, stream: torch.cuda.Stream):
        self.turn = threading.Lock()
        self._name, self._frame_hw = name, frame_hw
        self._device, self._stream = device, stream
        self._pool = torch.cuda.graph_pool_handle()
        self._of: dict[int, Recorded] = {}

    def of(self, count: int, run: Run) -> Recorded:
        """The recording of `run` for `count` images, or for the next larger size; the first call of a size records it.

        Raises `torch.OutOfMemoryError`, or `BackendError` where the work cannot be recorded.
        """
        rows = bucket_of(count)
        if rows not in self._of:
            self._of[rows] = self._record(rows, run)
        return self._of[rows]

    def _record(self, rows: int, run: Run) -> Recorded:
        images = torch.zeros(rows, *self._frame_hw, 3, dtype=torch.uint8, device=self._device)
        for _ in range(WARM_UP):  # here, running out of memory does no harm
            run(images)
        graph = torch.cuda.CUDAGraph()
        try:
            with (
                RECORDING,
                # Only this thread's calls count, as other workers go on allocating meanwhile.
                torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
            ):
                outputs = tuple(run(images))
        except RuntimeError as error:
            # Ending a broken recording raises another error, whose context is the reason.
            cause = error if isinstance(error, torch.OutOfMemoryError) else error.__context__
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
            reason = str(cause or error).strip().partition("\n")[0]
            raise BackendError.of(
                "cuda_graphs", f"{self._name} cannot record a batch of {rows}: {reason}; run it without cuda_graphs"
            ) from error
        return Recorded(graph, images, outputs)
