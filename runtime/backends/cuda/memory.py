"""CUDA as far as running a graph needs it: a GPU, a stream, recordings of it, and buffers that exist on both sides.

cuda-python only, no torch: a deployment does not install gigabytes for a copy of 200 kilobytes.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from runtime.backends.protocol import BackendError, OutOfMemory
from runtime.images.device_frames import DeviceFrame

try:
    from cuda.bindings import runtime as cudart
    from cuda.bindings.utils import get_cuda_native_handle
except ImportError as error:
    raise BackendError(
        f"this needs cuda-python: pip install cuda-python; isodet[gpu], isodet[trt] and isodet[rtx] bring it ({error})"
    ) from error


@dataclass(frozen=True)
class Gpu:
    """A CUDA device."""

    index: int
    name: str
    """Such as 'NVIDIA A10'."""
    sm: int
    """Compute capability, 86 for 8.6."""


def call(result: tuple[Any, ...]) -> Any:
    """The value of a CUDA call, which comes as (status, value...). Raises `BackendError` for a status not success,
    `OutOfMemory` where that is it.
    """
    status, *values = result
    if status != cudart.cudaError_t.cudaSuccess:
        _, text = cudart.cudaGetErrorString(status)
        said = text.decode() if isinstance(text, bytes) else text
        short = status == cudart.cudaError_t.cudaErrorMemoryAllocation
        raise (OutOfMemory if short else BackendError)(f"CUDA: {said} ({int(status)})")
    return values[0] if values else None


def gpu(index: int) -> Gpu:
    """The device number `index`. Raises `BackendError` where there is none."""
    properties = call(cudart.cudaGetDeviceProperties(index))
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return Gpu(index, name.rstrip("\0"), properties.major * 10 + properties.minor)


def use(index: int) -> None:
    """Make device number `index` the current one of this thread."""
    call(cudart.cudaSetDevice(index))


def release_with(owner: Any, release: Callable[[Any], Any], handle: Any) -> None:
    """Call `release(handle)` when `owner` is gone, but not where that is the end of the process.

    Then the driver takes everything back by itself, and a thread that is still inside an engine, as those of a batcher
    that nobody closed, must not lose the memory that it writes to.
    """
    weakref.finalize(owner, release, handle).atexit = False


class Recording:
    """Work that a stream once took down, to be replayed whole (a CUDA graph)."""

    def __init__(self, graph: Any):
        self.handle = call(cudart.cudaGraphInstantiate(graph, 0))
        release_with(self, cudart.cudaGraphExecDestroy, self.handle)


class Stream:
    """A queue of work on one GPU. Every method raises `BackendError` for what CUDA reports."""

    def __init__(self, index: int):
        self._index = index
        self.use()
        self._stream = call(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
        self.handle = int(get_cuda_native_handle(self._stream))
        release_with(self, cudart.cudaStreamDestroy, self._stream)

    def use(self) -> None:
        """Make its GPU the current one of this thread."""
        use(self._index)

    def wait(self) -> None:
        call(cudart.cudaStreamSynchronize(self._stream))

    def upload(self, buffer: Buffer, rows: int, source: int | None = None) -> None:
        """Start copying the first `rows` of a buffer to the GPU, or what is at `source` in their place."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        size = buffer.row_bytes * rows
        call(cudart.cudaMemcpyAsync(buffer.device, source or buffer.address, size, kind, self._stream))

    def download(self, buffer: Buffer, rows: int) -> None:
        """Start copying the first `rows` of a buffer from the GPU."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        size = buffer.row_bytes * rows
        call(cudart.cudaMemcpyAsync(buffer.address, buffer.device, size, kind, self._stream))

    def place(self, frame: DeviceFrame, buffer: Buffer, row: int) -> None:
        """Start copying `frame` within the GPU into a row of `buffer`, after what its own stream still has to do."""
        memory = call(cudart.cudaPointerGetAttributes(frame.pointer))
        kinds = cudart.cudaMemoryType
        if memory.type not in (kinds.cudaMemoryTypeDevice, kinds.cudaMemoryTypeManaged):
            raise BackendError("expected a frame in the memory of a GPU; this pointer is none of CUDA's")
        if memory.type == kinds.cudaMemoryTypeDevice and memory.device != self._index:
            raise BackendError(f"expected a frame on cuda:{self._index}, where the model is; got cuda:{memory.device}")
        if frame.stream is not None:
            call(cudart.cudaStreamSynchronize(frame.stream))
        height, width = frame.size_hw
        to, kind = buffer.device + row * buffer.row_bytes, cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        call(cudart.cudaMemcpy2DAsync(
            to, width * 3, frame.pointer, frame.pitch, width * 3, height, kind, self._stream,
        ))  # fmt: skip

    def record(self, work: Callable[[], bool]) -> Recording | None:
        """What `work` queues here, taken down and not run; None where it says False or does what cannot be recorded.

        What `work` raises goes through; the stream can be used as before in any case.
        """
        # Only for this thread: otherwise an allocation in any thread of the application would spoil the recording.
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call(cudart.cudaStreamBeginCapture(self._stream, mode))
        done, taken, graph = False, False, None
        try:
            try:
                done = work()
            finally:  # in any case, or the stream stays in recording
                status, graph = cudart.cudaStreamEndCapture(self._stream)
                taken = status == cudart.cudaError_t.cudaSuccess
            return Recording(graph) if taken and done else None
        finally:
            if taken:
                call(cudart.cudaGraphDestroy(graph))

    def replay(self, recording: Recording) -> None:
        call(cudart.cudaGraphLaunch(recording.handle, self._stream))


class Block:
    """Memory on the GPU that is current, `size` bytes at `address`, aligned to 256."""

    def __init__(self, size: int):
        self.size = size
        self.address = int(call(cudart.cudaMalloc(max(size, 1))))
        release_with(self, cudart.cudaFree, self.address)


def pinned(size: int) -> NDArray[np.uint8]:
    """`size` bytes of page-locked memory of the host, which the GPU reads without a copy in between."""
    address = int(call(cudart.cudaHostAlloc(max(size, 1), cudart.cudaHostAllocPortable)))
    memory = (ctypes.c_uint8 * size).from_address(address)
    release_with(memory, cudart.cudaFreeHost, address)  # every view of the array holds on to `memory`
    return np.ctypeslib.as_array(memory)


def is_pinned(array: NDArray[Any]) -> bool:
    """Whether an array begins in page-locked memory, of whichever library."""
    memory = call(cudart.cudaPointerGetAttributes(array.ctypes.data))
    return bool(memory.type == cudart.cudaMemoryType.cudaMemoryTypeHost)


class Buffer:
    """One tensor in page-locked host memory and on the GPU, for as many rows as will ever be needed."""

    host: NDArray[Any]

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike):
        """shape: [rows, ...]. On the GPU that is current."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape)) * kind.itemsize
        self.row_bytes = size // shape[0]
        self.host = pinned(size).view(kind).reshape(shape)
        self.address = self.host.ctypes.data
        self._block = Block(size)
        self.device = self._block.address
