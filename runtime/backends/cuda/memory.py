"""The part of CUDA that running a graph needs: a GPU, a stream, its recordings, and buffers on host and GPU.

It uses cuda-python, not torch: a deployment should not install gigabytes to copy 200 kilobytes.
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
    """The value of a CUDA call, whose `result` is (status, value...).

    Raises `OutOfMemory` where memory could not be allocated, `BackendError` for any other error.
    """
    status, *values = result
    if status != cudart.cudaError_t.cudaSuccess:
        _, text = cudart.cudaGetErrorString(status)
        message = text.decode() if isinstance(text, bytes) else text
        out_of_memory = status == cudart.cudaError_t.cudaErrorMemoryAllocation
        raise (OutOfMemory if out_of_memory else BackendError)(f"CUDA: {message} ({int(status)})")
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
    """Call `release(handle)` when `owner` is deleted, but not at the end of the process.

    There the driver frees everything by itself, and a thread may still be inside an engine (that of a batcher that
    nobody closed): it must not lose the memory that it writes to.
    """
    weakref.finalize(owner, release, handle).atexit = False


class Recording:
    """Recorded work of a stream, to be replayed as a whole (a CUDA graph)."""

    def __init__(self, graph: Any):
        self.handle = call(cudart.cudaGraphInstantiate(graph, 0))
        release_with(self, cudart.cudaGraphExecDestroy, self.handle)


class Stream:
    """A queue of work on one GPU. Every method raises `BackendError` for an error of CUDA."""

    def __init__(self, index: int):
        self._index = index
        self.use()
        self._stream = call(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
        self.handle = int(get_cuda_native_handle(self._stream))
        release_with(self, cudart.cudaStreamDestroy, self._stream)

    def use(self) -> None:
        """Make the GPU of this stream the current one of this thread."""
        use(self._index)

    def wait(self) -> None:
        call(cudart.cudaStreamSynchronize(self._stream))

    def upload(self, buffer: Buffer, rows: int, source: int | None = None) -> None:
        """Start copying `rows` rows into a buffer's GPU side: from the address `source`, or from its host side."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        size = buffer.row_bytes * rows
        call(cudart.cudaMemcpyAsync(buffer.device, source or buffer.address, size, kind, self._stream))

    def download(self, buffer: Buffer, rows: int) -> None:
        """Start copying the first `rows` rows of a buffer from the GPU to the host."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        size = buffer.row_bytes * rows
        call(cudart.cudaMemcpyAsync(buffer.address, buffer.device, size, kind, self._stream))

    def place(self, frame: DeviceFrame, buffer: Buffer, row: int) -> None:
        """Wait for the stream of `frame`, then start copying it, within the GPU, into a row of `buffer`."""
        memory = call(cudart.cudaPointerGetAttributes(frame.pointer))
        kinds = cudart.cudaMemoryType
        if memory.type not in (kinds.cudaMemoryTypeDevice, kinds.cudaMemoryTypeManaged):
            raise BackendError("expected a frame in the memory of a GPU; this pointer is none of CUDA's")
        if memory.type == kinds.cudaMemoryTypeDevice and memory.device != self._index:
            raise BackendError(f"expected a frame on cuda:{self._index}, where the model is; got cuda:{memory.device}")
        if frame.stream is not None:
            call(cudart.cudaStreamSynchronize(frame.stream))
        height, width = frame.size_hw
        to, size = buffer.device + row * buffer.row_bytes, (width * 3, height)
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        call(cudart.cudaMemcpy2DAsync(to, width * 3, frame.pointer, frame.pitch, *size, kind, self._stream))

    def record(self, work: Callable[[], bool]) -> Recording | None:
        """Record what `work` queues on this stream, without running it.

        Returns None where `work` returns False, or does something that CUDA cannot record. Raises what `work` raises.
        In any case the stream can be used afterwards.
        """
        # Only this thread's calls count: else an allocation in any thread of the application would break the recording.
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call(cudart.cudaStreamBeginCapture(self._stream, mode))
        recorded, graph = False, None
        try:
            try:
                done = work()
            finally:  # in any case, or the stream would go on recording
                status, graph = cudart.cudaStreamEndCapture(self._stream)
                recorded = status == cudart.cudaError_t.cudaSuccess
            return Recording(graph) if recorded and done else None
        finally:
            if recorded:
                call(cudart.cudaGraphDestroy(graph))

    def replay(self, recording: Recording) -> None:
        call(cudart.cudaGraphLaunch(recording.handle, self._stream))


class Block:
    """`size` bytes of memory at `address` on the current GPU, aligned to 256 bytes."""

    def __init__(self, size: int):
        self.size = size
        self.address = int(call(cudart.cudaMalloc(max(size, 1))))
        release_with(self, cudart.cudaFree, self.address)


def pinned(size: int) -> NDArray[np.uint8]:
    """`size` bytes of page-locked host memory: the GPU reads it without a copy in between."""
    address = int(call(cudart.cudaHostAlloc(max(size, 1), cudart.cudaHostAllocPortable)))
    memory = (ctypes.c_uint8 * size).from_address(address)
    release_with(memory, cudart.cudaFreeHost, address)  # every view of the array holds on to `memory`
    return np.ctypeslib.as_array(memory)


def is_pinned(array: NDArray[Any]) -> bool:
    """Whether an array begins in page-locked memory, whichever library allocated it."""
    memory = call(cudart.cudaPointerGetAttributes(array.ctypes.data))
    return bool(memory.type == cudart.cudaMemoryType.cudaMemoryTypeHost)


class Buffer:
    """One tensor on both sides: in page-locked host memory and on the GPU, with rows for the largest batch."""

    host: NDArray[Any]

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike):
        """shape: [rows, ...]. It lies on the current GPU."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape)) * kind.itemsize
        self.row_bytes = size // shape[0]
        self.host = pinned(size).view(kind).reshape(shape)
        self.address = self.host.ctypes.data
        self._block = Block(size)
        self.device = self._block.address
