"""What one thread runs an engine with: execution contexts, buffers, recordings of the GPU's work (CUDA graphs)."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends.cuda.batch_sizes import bucket_of
from runtime.backends.cuda.memory import Block, Recording, Stream, pinned
from runtime.backends.cuda.staging import Staging, Tensors
from runtime.backends.protocol import BackendError, Images, OutOfMemory, RawOutputs, output_names
from runtime.backends.trt.library import Library, Messages
from runtime.card.card import Card, CardError

if TYPE_CHECKING:
    import tensorrt

_log = logging.getLogger(__name__)

INPUT = "images"
TYPES = {
    "num_dets": np.int32, "boxes": np.float32, "scores": np.float32, "labels": np.int32, "nms_exact": np.bool_,
}  # fmt: skip


class EngineContext:
    """A stream, buffers for the largest batch, and execution contexts on one engine; calls take turns.

    With `cuda_graphs` TensorRT gets an execution context for each size of batch: a recording is of one size, and a
    context that has changed since makes it undefined. Their scratch memory is one block, since they take turns.
    TensorRT-RTX records by itself, whatever the size.
    """

    def __init__(self, library: Library, engine: Any, card: Card, index: int, messages: Messages, cuda_graphs: bool):
        self._library, self._card, self._messages = library, card, messages
        self._engine: tensorrt.ICudaEngine = engine
        self._least, _, self._most = card.engine["profile"]
        self._records = cuda_graphs and library.flavour != "rtx"
        self._lock = threading.Lock()
        self._stream = Stream(index)
        self._staging = Staging(self._stream, card, INPUT, tensors_of(library, engine, card), self._most)
        self._block = Block(self._engine.device_memory_size_v2) if self._records else None
        self._contexts: dict[int, Any] = {}
        self._recordings: dict[int, Recording | None] = {}
        if not self._records:
            self._one: Any = self._make(cuda_graphs)

    def __call__(self, images: Images) -> RawOutputs:
        """Raises `OutOfMemory`, or `BackendError` with what the library says."""
        count = len(images)
        rows = self._rows(count)
        with self._lock:
            self._staging.put(images, rows)
            self._start(rows)
            return self._staging.take(count, rows)

    def timed(self, images: Images) -> tuple[RawOutputs, dict[str, float]]:
        """As a call, with the seconds of each stage (`runtime.backends.protocol.TimedCall`)."""
        rows = self._rows(len(images))
        with self._lock:
            return self._staging.timed(images, rows, lambda: self._start(rows))

    def host_memory(self, size: int) -> NDArray[np.uint8]:
        """Page-locked memory of `size` bytes, from which batches go to the GPU without a copy in between."""
        self._stream.use()
        return pinned(size)

    def layers(self) -> str:
        """What the engine consists of, as the JSON of the library's inspector, for the batch it was tuned for."""
        trt = self._library.trt
        with self._lock:
            self._stream.use()
            size = self._card.engine["profile"][1]
            context = self._context(size)
            self._shape(context, size)
            inspector: tensorrt.EngineInspector = self._engine.create_engine_inspector()
            inspector.execution_context = context
            return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))

    def _rows(self, count: int) -> int:
        return bucket_of(count, self._least, self._most) if self._records else max(count, self._least)

    def _start(self, rows: int) -> None:
        """Run what lies in the buffers. Raises `OutOfMemory`, or `BackendError` with what the library says."""
        before = len(self._messages.errors)
        if not self._run(rows):
            said = self._messages.errors[before:]
            short = any("OutOfMemory" in line or "out of memory" in line for line in said)
            message = f"{self._library.name} failed on a batch of {rows}: {self._messages.why()}"
            raise (OutOfMemory if short else BackendError)(message)

    def _run(self, rows: int) -> bool:
        recording = self._recordings.get(rows)
        if recording is not None:
            self._stream.replay(recording)
            return True
        context: tensorrt.IExecutionContext = self._context(rows)
        if not self._shape(context, rows) or not context.execute_async_v3(self._stream.handle):
            return False
        if self._records and rows not in self._recordings:
            self._recordings[rows] = self._record(context, rows)
        return True

    def _record(self, context: tensorrt.IExecutionContext, rows: int) -> Recording | None:
        """After a first run, which does what is done once for a new size and cannot be recorded."""
        self._stream.wait()
        recording = self._stream.record(lambda: context.execute_async_v3(self._stream.handle))
        if recording is None:
            _log.warning("%s: batches of %d run without a CUDA graph: %s",
                         self._library.name, rows, self._messages.why())  # fmt: skip
        return recording

    def _shape(self, context: tensorrt.IExecutionContext, rows: int) -> bool:
        shape = (rows, *self._staging.buffers[INPUT].host.shape[1:])
        return bool(context.set_input_shape(INPUT, shape))

    def _context(self, rows: int) -> Any:
        if not self._records:
            return self._one
        if rows not in self._contexts:
            self._contexts[rows] = self._make(True)
        return self._contexts[rows]

    def _make(self, cuda_graphs: bool) -> Any:
        """An execution context that knows the buffers. Raises `OutOfMemory` where there is no room for it."""
        trt = self._library.trt
        self._stream.use()
        if self._block is not None:
            context: tensorrt.IExecutionContext = self._engine.create_execution_context(
                trt.ExecutionContextAllocationStrategy.USER_MANAGED
            )
        elif cuda_graphs:
            config: tensorrt.IRuntimeConfig = self._engine.create_runtime_config()
            if hasattr(config, "cuda_graph_strategy"):
                config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            else:
                raise BackendError(f"{self._library.name} records no CUDA graphs: cuda_graphs needs 1.2 or later")
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context()
        if context is None:
            raise OutOfMemory(f"{self._library.name} has no room for an execution context: {self._messages.why()}")
        if self._block is not None:
            context.set_device_memory(self._block.address, self._block.size)
        for name, buffer in self._staging.buffers.items():
            context.set_tensor_address(name, buffer.device)
        return context


def tensors_of(library: Library, engine: Any, card: Card, path: Path | None = None) -> Tensors:
    """Shape without the batch and type of every tensor. Raises `CardError` for an engine that is not its card's."""
    where = f"{path}: " if path is not None else ""
    found: tensorrt.ICudaEngine = engine
    names = [found.get_tensor_name(i) for i in range(found.num_io_tensors)]
    expected = (INPUT, *output_names(card))
    if set(names) != set(expected):
        raise CardError(f"{where}expected the tensors {', '.join(expected)}; got {', '.join(names)}")
    height, width = card.frame_hw
    pixels, layout = (np.uint8, (height, width, 3)) if card.input == "uint8-nhwc" else (np.float32, (3, height, width))
    tensors = {}
    for name in names:
        dtype = np.dtype(library.trt.nptype(found.get_tensor_dtype(name)))
        wanted = np.dtype(TYPES.get(name, pixels))
        shape = tuple(found.get_tensor_shape(name))[1:]
        if dtype != wanted or (name == INPUT and shape != layout):
            raise CardError(f"{where}{name}: expected {wanted} as its card says, got {dtype} {list(shape)}")
        tensors[name] = (shape, dtype)
    return tensors
