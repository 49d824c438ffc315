"""How one thread runs an engine: execution contexts, buffers, recordings of the GPU's work (CUDA graphs)."""

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
from runtime.backends.protocol import (
    OUTPUT_TYPES,
    BackendError,
    Images,
    OutOfMemory,
    RawOutputs,
    input_layout,
    output_names,
)
from runtime.backends.trt.library import Library, Messages
from runtime.card.card import Card, CardError

if TYPE_CHECKING:
    import tensorrt

_log = logging.getLogger(__name__)

INPUT = "images"


class EngineContext:
    """A stream, buffers for the largest batch, and execution contexts on one engine; calls take turns.

    With CUDA `graphs` TensorRT gets an execution context for each batch size: a recording is of one size, and may not
    be replayed after its context was changed. These contexts take turns, so they share one block of scratch memory.
    TensorRT-RTX records by itself, for all sizes.
    """

    def __init__(
        self,
        path: Path,
        library: Library,
        engine: Any,
        card: Card,
        tensors: Tensors,
        index: int,
        messages: Messages,
        graphs: bool,
    ):
        self._path, self._library, self._messages, self._cuda_graphs = path, library, messages, graphs
        self._engine: tensorrt.ICudaEngine = engine
        self._least, self._tuned, self._most = card.engine["profile"]  # batch sizes
        self._records = graphs and library.flavour != "rtx"
        self._lock = threading.Lock()
        self._stream = Stream(index)
        self._staging = Staging(self._stream, card, INPUT, tensors, self._most)
        self._block = Block(self._engine.device_memory_size_v2) if self._records else None
        self._contexts: dict[int, Any] = {}  # by batch size; without recordings one, under 0
        self._recordings: dict[int, Recording | None] = {}
        if not self._records:
            self._context(0)  # at once, so that a lack of memory shows here

    def __call__(self, images: Images) -> RawOutputs:
        """Raises `OutOfMemory`, or `BackendError` with the library's message."""
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
        """The engine's layers as JSON of the library's inspector, for the batch size that the engine was tuned for."""
        trt = self._library.trt
        with self._lock:
            self._stream.use()
            context = self._context(self._tuned)
            self._shape(context, self._tuned)
            inspector: tensorrt.EngineInspector = self._engine.create_engine_inspector()
            inspector.execution_context = context
            return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))

    def _rows(self, count: int) -> int:
        return bucket_of(count, self._least, self._most) if self._records else max(count, self._least)

    def _start(self, rows: int) -> None:
        """Start the engine on the buffers. Raises `OutOfMemory`, or `BackendError` with the library's message."""
        before = len(self._messages.errors)
        if not self._run(rows):
            errors = self._messages.errors[before:]
            out_of_memory = any("OutOfMemory" in line or "out of memory" in line for line in errors)
            message = f"{self._library.name} failed on a batch of {rows}: {self._messages.why()}"
            raise (OutOfMemory if out_of_memory else BackendError).at(self._path, message)

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
        """Record a run. The first run of a new size comes before it, as it does things that cannot be recorded."""
        self._stream.wait()
        recording = self._stream.record(lambda: context.execute_async_v3(self._stream.handle))
        if recording is None:
            reason = self._messages.why()
            _log.warning("%s: batches of %d run without a CUDA graph: %s", self._library.name, rows, reason)
        return recording

    def _shape(self, context: tensorrt.IExecutionContext, rows: int) -> bool:
        shape = (rows, *self._staging.buffers[INPUT].host.shape[1:])
        return bool(context.set_input_shape(INPUT, shape))

    def _context(self, rows: int) -> Any:
        """The execution context for a batch size. Raises `OutOfMemory` where there is no room for a new one."""
        key = rows if self._records else 0
        if key not in self._contexts:
            self._contexts[key] = self._new_context()
        return self._contexts[key]

    def _new_context(self) -> Any:
        trt = self._library.trt
        self._stream.use()
        if self._block is not None:
            context: tensorrt.IExecutionContext = self._engine.create_execution_context(
                trt.ExecutionContextAllocationStrategy.USER_MANAGED
            )
        elif self._cuda_graphs:
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


def tensors_of(path: Path, library: Library, engine: tensorrt.ICudaEngine, card: Card) -> Tensors:
    """Shape without the batch, and type, of every tensor. Raises `CardError` for an engine that is not its card's."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    expected_names = (INPUT, *output_names(card))
    if set(names) != set(expected_names):
        raise CardError.at(path, f"expected the tensors {', '.join(expected_names)}; got {', '.join(names)}")
    input_shape, input_type = input_layout(card)
    tensors = {}
    for name in names:
        dtype = np.dtype(library.trt.nptype(engine.get_tensor_dtype(name)))
        expected = np.dtype(OUTPUT_TYPES.get(name, input_type))
        shape = tuple(engine.get_tensor_shape(name))[1:]
        if dtype != expected or (name == INPUT and shape != input_shape):
            raise CardError.at(path, f"{name}: expected {expected} as its card says, got {dtype} {list(shape)}")
        tensors[name] = (shape, dtype)
    return tensors
