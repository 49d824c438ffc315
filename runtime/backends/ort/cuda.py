"""ONNX Runtime on a CUDA device, with inputs and outputs in buffers that we allocate."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from runtime.backends.cuda.batch_sizes import bucket_of
from runtime.backends.cuda.memory import Stream, pinned
from runtime.backends.cuda.staging import Staging, Tensors
from runtime.backends.ort.backend import TYPES
from runtime.backends.protocol import BackendError, Images, RawOutputs
from runtime.card.card import Card


class BoundSession:
    """A session whose input and outputs lie in buffers of its own on the GPU (IOBinding), for one thread at a time.

    It has page-locked host memory and a stream for its copies; the graph runs on a stream of the provider, so that
    several `BoundSession`s of one session run side by side. With `cuda_graphs` the provider records the graph for each
    batch size, at fixed addresses: sizes between are padded, and buffers that a recording uses are kept.

    graph_id: the name of the provider's setting for the number of a recording.
    """

    def __init__(self, session: Any, card: Card, index: int, fixed_batch: int | None, cuda_graphs: bool, graph_id: str):
        self._session, self._card, self._index = session, card, index
        self._fixed, self._cuda_graphs = fixed_batch, cuda_graphs
        self._graph_id = graph_id
        self._input = session.get_inputs()[0].name
        self._tensors = bound_tensors(session)
        self._stream = Stream(index)
        self._lock = threading.Lock()
        self._staging: Staging | None = None
        self._bindings: dict[int, tuple[Any, Staging, Any]] = {}

    def __call__(self, images: Images) -> RawOutputs:
        return self.timed(images)[0]

    def timed(self, images: Images) -> tuple[RawOutputs, dict[str, float]]:
        """The outputs, and the seconds of each stage (`runtime.backends.protocol.TimedCall`)."""
        count = len(images)
        rows = self._fixed or (bucket_of(count) if self._cuda_graphs else max(1, count))
        with self._lock:
            binding, staging, options = self._bindings.get(rows) or self._bind(rows)
            # It waits in any case: the provider's stream does not know ours, and a run returns when its work is done.
            return staging.timed(images, rows, lambda: self._session.run_with_iobinding(binding, options))

    def host_memory(self, size: int) -> NDArray[np.uint8]:
        """Page-locked memory of `size` bytes, from which batches go to the GPU without a copy in between."""
        self._stream.use()
        return pinned(size)

    def another(self) -> BoundSession:
        """The same session with other buffers. Raises `BackendError` with CUDA graphs."""
        if self._cuda_graphs:  # all recordings use the session's one scratch memory
            raise BackendError("ONNX Runtime replays CUDA graphs in one thread at a time: expected workers=1")
        return BoundSession(self._session, self._card, self._index, self._fixed, False, self._graph_id)

    def _bind(self, rows: int) -> tuple[Any, Staging, Any]:
        if self._staging is None or self._staging.rows < rows:
            if not self._cuda_graphs:
                self._bindings.clear()  # which frees the smaller buffers
            self._staging = Staging(self._stream, self._card, self._input, self._tensors, rows)
        binding = self._session.io_binding()
        for name, buffer in self._staging.buffers.items():
            bind = binding.bind_input if name == self._input else binding.bind_output
            shape = [rows, *buffer.host.shape[1:]]
            bind(name, "cuda", self._index, buffer.host.dtype.type, shape, buffer.device)
        options = onnxruntime.RunOptions()
        if self._cuda_graphs:
            options.add_run_config_entry(self._graph_id, str(rows))
        self._bindings[rows] = binding, self._staging, options
        return self._bindings[rows]


def bound_tensors(session: Any) -> Tensors:
    """Shape without the batch, and type, of every tensor. Raises `BackendError` for one without a fixed shape."""
    tensors = {}
    for tensor in (*session.get_inputs(), *session.get_outputs()):
        shape = tuple(tensor.shape[1:])
        if not all(isinstance(size, int) for size in shape):
            raise BackendError(f"{tensor.name} is {list(tensor.shape)}: expected sizes that are known beforehand")
        tensors[tensor.name] = (shape, TYPES[tensor.type])
    return tensors
