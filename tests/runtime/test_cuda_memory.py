"""CUDA without a GPU: that the real cuda-python takes what it is given, and what is released when."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime.backends.protocol import BackendError
from runtime.images.device_frames import LEGACY_STREAM, DeviceFrame
from tests.fake_cuda import forget_cuda, put_in_fake_cuda
from tests.processes import ROOT, python
from tests.runtime.conftest import make_card


class Bindings:
    """The real `cuda.bindings.runtime`. Where a call fails for want of a GPU, its values are made up, of the types that
    a GPU gives: so the next call gets them, too."""

    def __init__(self, real: ModuleType) -> None:
        self._real = real
        self.called: set[str] = set()
        self.memory: list[np.ndarray] = []
        self.made_up: dict[str, Callable[..., Any]] = {
            "cudaGetDeviceProperties": lambda index: real.cudaDeviceProp(),
            "cudaStreamCreateWithFlags": lambda flags: real.cudaStream_t(),
            "cudaStreamEndCapture": lambda stream: real.cudaGraph_t(),
            "cudaGraphInstantiate": lambda graph, flags: real.cudaGraphExec_t(),
            "cudaMalloc": self._memory, "cudaHostAlloc": self._memory, "cudaPointerGetAttributes": self._attributes,
        }  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        # Enumerations and constants as they are; functions through `_call`.
        if not name.startswith("cuda") or isinstance(found, (type, int)):
            return found
        return lambda *given: self._call(name, found, given)

    def _call(self, name: str, function: Callable[..., tuple[Any, ...]], given: tuple[Any, ...]) -> tuple[Any, ...]:
        self.called.add(name)
        status, *values = function(*given)  # raises TypeError for an argument that it does not take
        success = self._real.cudaError_t.cudaSuccess
        if status == success:
            return status, *values
        assert len(values) == (name in self.made_up), f"{name} gives {len(values)} values"
        return (success, self.made_up[name](*given)) if values else (success,)

    def _memory(self, size: int, flags: int = 0) -> int:
        self.memory.append(np.zeros(size, np.uint8))
        return self.memory[-1].ctypes.data

    def _attributes(self, pointer: int) -> SimpleNamespace:
        kinds, ours = self._real.cudaMemoryType, any(pointer == block.ctypes.data for block in self.memory)
        return SimpleNamespace(type=kinds.cudaMemoryTypeDevice if ours else kinds.cudaMemoryTypeUnregistered, device=0)


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bindings]:
    """Our CUDA modules on the real cuda-python; skipped where that is not installed."""
    real = pytest.importorskip("cuda.bindings.runtime")
    forget_cuda()
    memory = importlib.import_module("runtime.backends.cuda.memory")
    watched = Bindings(real)
    monkeypatch.setattr(memory, "cudart", watched)
    yield watched
    forget_cuda()


def test_every_call_takes_what_we_give_it(bindings: Bindings) -> None:
    """No GPU has to be there: the arguments are converted before CUDA is asked."""
    _all_that_we_do()  # what it made is gone afterwards, which is some of the calls
    source = (ROOT / "runtime/backends/cuda/memory.py").read_text(encoding="utf-8")
    used = {name for name in re.findall(r"cudart\.(cuda\w+)[(,]", source) if name != "cudaGetErrorString"}
    assert len(used) > 15 and used <= bindings.called, "a call that this test does not make"


def _all_that_we_do() -> None:
    from runtime.backends.cuda import memory as cuda
    from runtime.backends.cuda.staging import Staging

    assert cuda.gpu(0).index == 0
    stream = cuda.Stream(0)
    card = make_card(input_size_hw=(4, 4))
    tensors = {
        "images": ((4, 4, 3), np.uint8), "num_dets": ((1,), np.int32), "boxes": ((2, 4), np.float32),
        "scores": ((2,), np.float32), "labels": ((2,), np.int32),
    }  # fmt: skip
    staging = Staging(stream, card, "images", tensors, 3)
    images = np.ones((2, 4, 4, 3), np.uint8)
    staging.put(images, 3)
    assert not cuda.is_pinned(images)
    frame = cuda.Block(64)
    for handle in (None, LEGACY_STREAM, stream.handle):
        staging.put([DeviceFrame(frame, frame.address, (4, 4), 16, handle, "cuda:0")], 1)
    raw, seconds = staging.timed(images, 2, lambda: None)
    assert raw.boxes.shape == (2, 2, 4) and len(seconds) == 3
    recording = stream.record(lambda: stream.upload(staging.buffers["images"], 2) is None)
    assert recording is not None
    stream.replay(recording)
    with pytest.raises(BackendError, match="this pointer is none of CUDA's"):
        stream.place(DeviceFrame(images, images.ctypes.data, (4, 4), 12, None, None), staging.buffers["images"], 0)


def test_an_error_says_what_cuda_says(bindings: Bindings) -> None:
    from runtime.backends.cuda import memory as cuda
    from runtime.backends.protocol import OutOfMemory

    errors = bindings._real.cudaError_t
    with pytest.raises(OutOfMemory, match=r"^CUDA: out of memory \(2\)$"):
        cuda.call((errors.cudaErrorMemoryAllocation, None))
    with pytest.raises(BackendError, match=r"^CUDA: an illegal memory access was encountered \(700\)$") as raised:
        cuda.call((errors.cudaErrorIllegalAddress,))
    assert raised.type is BackendError


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    yield put_in_fake_cuda(monkeypatch)
    forget_cuda()


def test_memory_goes_with_its_last_view(fake: Any) -> None:
    from runtime.backends.cuda.memory import Buffer, pinned

    memory = pinned(64)
    part = memory[3:9].reshape(2, 3)
    del memory
    assert len(fake.alive) == 1 and part.shape == (2, 3)
    del part
    buffer = Buffer((2, 3), np.float32)
    assert len(fake.alive) == 2 and buffer.row_bytes == 12 and buffer.host.shape == (2, 3)
    del buffer
    assert fake.alive == {}


def test_a_recording_that_fails_leaves_the_stream_and_no_graph(fake: Any) -> None:
    from runtime.backends.cuda.memory import Buffer, Stream

    destroyed: list[Any] = []
    fake.cudaGraphDestroy = lambda graph: (destroyed.append(graph), (0,))[1]
    stream = Stream(0)

    def raises() -> bool:
        raise KeyError("a bug of the caller")

    with pytest.raises(KeyError):
        stream.record(raises)
    assert len(destroyed) == 1 and stream.record(lambda: False) is None and len(destroyed) == 2
    fake.cudaGraphInstantiate = lambda graph, flags: (2, None)
    with pytest.raises(BackendError, match="CUDA: broken"):
        stream.record(lambda: True)
    assert len(destroyed) == 3
    stream.wait()
    stream.upload(Buffer((1,), np.uint8), 1)


AT_THE_END = """
import sys
from tests.fake_cuda import fake_cuda

modules = fake_cuda()
runtime = modules["cuda.bindings.runtime"]
for name in ("cudaFree", "cudaFreeHost", "cudaStreamDestroy", "cudaGraphExecDestroy"):
    setattr(runtime, name, lambda handle, name=name: print(name, flush=True))
sys.modules.update(modules)

import numpy as np
from runtime.backends.cuda.memory import Buffer, Stream, pinned

stream, buffer, memory, gone = Stream(0), Buffer((2, 3), np.float32), pinned(9), pinned(9)
recording = stream.record(lambda: True)
del gone
print("end", flush=True)
if len(sys.argv) > 1:
    raise RuntimeError("as applications end")
"""


@pytest.mark.parametrize("badly", [[], ["badly"]])
def test_at_the_end_of_the_process_nothing_is_released(badly: list[str]) -> None:
    """A thread inside an engine may still be writing there, and the driver may be half gone."""
    done = python("-c", AT_THE_END, *badly)
    assert done.stdout.split() == ["cudaFreeHost", "end"]
    assert done.returncode == len(badly) and done.stderr.endswith("RuntimeError: as applications end\n" * len(badly))
