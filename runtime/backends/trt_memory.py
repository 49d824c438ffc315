"""CUDA as far as running an engine needs it: a GPU, a stream, and buffers that exist on both sides.

cuda-python only, no torch: a deployment does not install gigabytes for a copy of 200 kilobytes.
"""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from runtime.backends import BackendError

try:
    from cuda.bindings import runtime as cudart
    from cuda.bindings.utils import get_cuda_native_handle
except ImportError as error:
    raise BackendError(f"an engine needs cuda-python: pip install 'isodet[trt]' or 'isodet[rtx]' ({error})") from error


@dataclass(frozen=True)
class Gpu:
    """A CUDA device."""

    index: int
    name: str
    """Such as 'NVIDIA A10'."""
    sm: int
    """Compute capability, 86 for 8.6."""


def call(result: tuple[Any, ...]) -> Any:
    """The value of a CUDA call, which comes as (status, value...). Raises `BackendError` for a status not success."""
    status, *values = result
    if status != cudart.cudaError_t.cudaSuccess:
        _, text = cudart.cudaGetErrorString(status)
        said = text.decode() if isinstance(text, bytes) else text
        raise BackendError(f"CUDA: {said} ({int(status)})")
    return values[0] if values else None


def gpu(index: int) -> Gpu:
    """The device number `index`. Raises `BackendError` where there is none."""
    properties = call(cudart.cudaGetDeviceProperties(index))
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return Gpu(index, name.rstrip("\0"), properties.major * 10 + properties.minor)


class Stream:
    """A queue of work on one GPU. Every method raises `BackendError` for what CUDA reports."""

    def __init__(self, index: int):
        self._index = index
        self.use()
        self._stream = call(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
        self.handle = int(get_cuda_native_handle(self._stream))
        weakref.finalize(self, cudart.cudaStreamDestroy, self._stream)

    def use(self) -> None:
        """Make its GPU the current one of this thread."""
        call(cudart.cudaSetDevice(self._index))

    def wait(self) -> None:
        call(cudart.cudaStreamSynchronize(self._stream))

    def upload(self, buffer: Buffer, rows: int) -> None:
        """Start copying the first `rows` of a buffer to the GPU."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        size = buffer.row_bytes * rows
        call(cudart.cudaMemcpyAsync(buffer.device, buffer.address, size, kind, self._stream))

    def download(self, buffer: Buffer, rows: int) -> None:
        """Start copying the first `rows` of a buffer from the GPU."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        size = buffer.row_bytes * rows
        call(cudart.cudaMemcpyAsync(buffer.address, buffer.device, size, kind, self._stream))


class Buffer:
    """One tensor in page-locked host memory and on the GPU, for as many rows as will ever be needed."""

    host: NDArray[Any]

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike):
        """shape: [rows, ...]. On the GPU that is current."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape)) * kind.itemsize
        self.row_bytes = size // shape[0]
        self.address = int(call(cudart.cudaHostAlloc(size, cudart.cudaHostAllocDefault)))
        weakref.finalize(self, cudart.cudaFreeHost, self.address)
        self.device = int(call(cudart.cudaMalloc(size)))
        weakref.finalize(self, cudart.cudaFree, self.device)
        memory = (ctypes.c_uint8 * size).from_address(self.address)
        self.host = np.ctypeslib.as_array(memory).view(kind).reshape(shape)
