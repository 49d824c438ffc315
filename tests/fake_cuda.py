"""cuda-python with one device, which is host memory: copies are copies, and a recording is a list of what to do."""

from __future__ import annotations

import ctypes
import sys
import types
from typing import Any

import pytest

CAPTURE = types.SimpleNamespace(work=None, broken=False)
"""A stream's recording: the work that was queued since it began; None where there is none."""

HOLDERS = ("cuda.memory", "cuda.staging", "ort.cuda", "trt.context")
"""Modules of `runtime.backends` that keep what they imported of cuda-python."""


def put_in_fake_cuda(monkeypatch: pytest.MonkeyPatch, sm: int = 86) -> Any:
    """Replaces cuda-python until `forget_cuda`; returns its module `runtime`."""
    modules = fake_cuda(sm=sm)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    forget_cuda()
    return modules["cuda.bindings.runtime"]


def forget_cuda() -> None:
    """The next one who asks for CUDA imports it anew."""
    for name in HOLDERS:
        sys.modules.pop(f"runtime.backends.{name}", None)


def fake_cuda(name: str = "NVIDIA A10", sm: int = 86) -> dict[str, Any]:
    """Modules of cuda-python by name, whose one device is host memory."""
    alive: dict[int, Any] = {}

    def allocate(size: int, *_: int) -> tuple[int, int]:
        memory = (ctypes.c_uint8 * size)()
        alive[ctypes.addressof(memory)] = memory
        return 0, ctypes.addressof(memory)

    def copy(to: int, source: int, size: int, kind: int, stream: Any) -> tuple[int]:
        if kind == 1:
            assert attributes(source)[1].type == 1, "from ordinary memory the driver copies twice, and waits"
            uploads.append(source)
        if CAPTURE.work is not None:  # taken down, and not done
            CAPTURE.work.append(lambda: ctypes.memmove(to, source, size))
            return (0,)
        ctypes.memmove(to, source, size)
        return (0,)

    def copy_rows(to: int, to_pitch: int, source: int, pitch: int, width: int, rows: int, *_: Any) -> tuple[int]:
        for row in range(rows):
            ctypes.memmove(to + row * to_pitch, source + row * pitch, width)
        return (0,)

    def begin(stream: Any, mode: int) -> tuple[int]:
        assert CAPTURE.work is None
        CAPTURE.work, CAPTURE.broken = [], False
        return (0,)

    def end(stream: Any) -> tuple[int, Any]:
        work, CAPTURE.work = CAPTURE.work, None
        return (901, None) if CAPTURE.broken else (0, work)

    def replay(work: Any, stream: Any) -> tuple[int]:
        replays.append(len(work))
        for one in work:
            one()
        return (0,)

    def wait(stream: int) -> tuple[int]:
        assert CAPTURE.work is None, "a stream that is recorded cannot be waited for"
        waits.append(stream)
        return (0,)

    replays: list[int] = []
    uploads: list[int] = []
    waits: list[int] = []

    def attributes(pointer: int) -> tuple[int, Any]:
        locked = any(start <= pointer < start + len(alive.get(start, b"")) for start in page_locked)
        return 0, types.SimpleNamespace(type=1, device=0) if locked else memory

    def allocate_locked(size: int, flags: int) -> tuple[int, int]:
        status, address = allocate(size)
        page_locked.append(address)
        return status, address

    page_locked: list[int] = []
    device = types.SimpleNamespace(cudaMemoryTypeHost=1, cudaMemoryTypeDevice=2, cudaMemoryTypeManaged=3)
    memory = types.SimpleNamespace(type=2, device=0)

    runtime = types.ModuleType("cuda.bindings.runtime")
    properties = types.SimpleNamespace(name=name.encode(), major=sm // 10, minor=sm % 10)
    runtime.__dict__.update(
        cudaError_t=types.SimpleNamespace(cudaSuccess=0, cudaErrorMemoryAllocation=2),
        cudaGetErrorString=lambda status: (0, b"broken"),
        cudaGetDeviceProperties=lambda index: (0, properties) if index == 0 else (101, None),
        cudaStreamNonBlocking=1, cudaHostAllocPortable=1, cudaStreamCreateWithFlags=lambda flags: (0, 7),
        cudaStreamDestroy=lambda stream: (0,), cudaSetDevice=lambda index: (0,),
        cudaStreamSynchronize=wait, cudaHostAlloc=allocate_locked, cudaMalloc=allocate,
        cudaFree=lambda address: (0 if alive.pop(address, None) else 1,),
        cudaFreeHost=lambda address: (0 if alive.pop(address, None) else 1,), cudaMemcpyAsync=copy,
        cudaMemcpyKind=types.SimpleNamespace(
            cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
        ),
        cudaMemcpy2DAsync=copy_rows, cudaMemoryType=device, cudaPointerGetAttributes=attributes,
        cudaStreamCaptureMode=types.SimpleNamespace(cudaStreamCaptureModeThreadLocal=1),
        cudaStreamBeginCapture=begin, cudaStreamEndCapture=end, cudaGraphInstantiate=lambda graph, flags: (0, graph),
        cudaGraphDestroy=lambda graph: (0,), cudaGraphExecDestroy=lambda graph: (0,), cudaGraphLaunch=replay,
        replays=replays, waits=waits, alive=alive, page_locked=page_locked, uploads=uploads, memory=memory,
    )  # fmt: skip
    utilities = types.ModuleType("cuda.bindings.utils")
    utilities.__dict__["get_cuda_native_handle"] = int
    package, bindings = types.ModuleType("cuda"), types.ModuleType("cuda.bindings")
    bindings.__dict__.update(runtime=runtime, utils=utilities)
    package.__dict__["bindings"] = bindings
    return {"cuda": package, "cuda.bindings": bindings, "cuda.bindings.runtime": runtime,
            "cuda.bindings.utils": utilities}  # fmt: skip
