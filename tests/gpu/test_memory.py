"""Memory on both sides, and its end, on the real driver."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from runtime.backends.protocol import BackendError, OutOfMemory

pytestmark = pytest.mark.gpu
MIB = 1 << 20


def free() -> int:
    return torch.cuda.mem_get_info(0)[0]


def test_the_gpu_is_the_one_that_pytorch_sees(cuda: Any) -> None:
    found, (major, minor) = cuda.gpu(0), torch.cuda.get_device_capability(0)
    assert (found.name, found.sm) == (torch.cuda.get_device_name(0), 10 * major + minor)
    with pytest.raises(BackendError, match=r"CUDA: invalid device ordinal \(101\)"):
        cuda.gpu(99)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int32, np.bool_])
@pytest.mark.parametrize("shape", [(5, 7, 3), (1, 1), (4,), (64, 33)])
def test_bytes_come_back(cuda: Any, shape: tuple[int, ...], dtype: Any) -> None:
    stream, buffer = cuda.Stream(0), cuda.Buffer(shape, dtype)
    sent = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    buffer.host[:] = sent
    stream.upload(buffer, shape[0])
    stream.wait()
    buffer.host[:] = 0
    stream.download(buffer, shape[0])
    stream.wait()
    np.testing.assert_array_equal(buffer.host, sent)
    assert buffer.device % 256 == 0 and buffer.row_bytes * shape[0] == sent.nbytes


def test_rows_that_are_not_asked_for_stay(cuda: Any) -> None:
    stream, buffer = cuda.Stream(0), cuda.Buffer((4, 100), np.uint8)
    buffer.host[:] = 1
    stream.upload(buffer, 4)
    other = cuda.pinned(300)
    other[:] = 2
    stream.upload(buffer, 3, other.ctypes.data)
    stream.wait()
    buffer.host[:] = 0
    stream.download(buffer, 2)
    stream.wait()
    assert buffer.host[:, 0].tolist() == [2, 2, 0, 0]
    stream.download(buffer, 4)
    stream.wait()
    assert buffer.host[:, 99].tolist() == [2, 2, 2, 1]


def test_blocks_are_aligned(cuda: Any) -> None:
    cuda.use(0)
    blocks = [cuda.Block(size) for size in (0, 1, 3, 255, 257, 1000, MIB + 1)]
    assert all(block.address and block.address % 256 == 0 for block in blocks)
    assert len({block.address for block in blocks}) == len(blocks)


def test_page_locked_memory_is_known(cuda: Any) -> None:
    cuda.use(0)
    ours, theirs = cuda.pinned(1000), torch.empty(1000, dtype=torch.uint8, pin_memory=True).numpy()
    assert cuda.is_pinned(ours) and cuda.is_pinned(ours[37:]) and cuda.is_pinned(theirs) and cuda.is_pinned(theirs[1:])
    assert cuda.is_pinned(cuda.Buffer((3, 2), np.float32).host[1:])
    for array in (np.zeros(10, np.uint8), np.zeros(100 * MIB, np.uint8), torch.zeros(1000).numpy()):
        assert not cuda.is_pinned(array)
    assert cuda.pinned(0).size == 0


def test_page_locked_memory_goes_with_its_last_view(cuda: Any) -> None:
    cuda.use(0)
    memory = cuda.pinned(64 * MIB)
    address, view = memory.ctypes.data, memory[5:].reshape(1, -1)
    del memory
    attributes = cuda.cudart.cudaPointerGetAttributes
    kinds = cuda.cudart.cudaMemoryType
    assert cuda.call(attributes(address)).type == kinds.cudaMemoryTypeHost
    del view
    assert cuda.call(attributes(address)).type == kinds.cudaMemoryTypeUnregistered


def test_memory_comes_back(cuda: Any) -> None:
    cuda.use(0)
    cuda.Block(1)
    before = free()
    blocks = [cuda.Block(64 * MIB) for _ in range(32)]
    assert free() <= before - 2000 * MIB
    del blocks
    assert free() >= before - 64 * MIB
    stream = cuda.Stream(0)
    for _ in range(300):
        buffer = cuda.Buffer((4, 2 * MIB), np.uint8)
        stream.upload(buffer, 4)
        stream.wait()
        del buffer
    for _ in range(300):
        cuda.Stream(0)
    assert free() >= before - 64 * MIB


def test_more_than_the_card_has(cuda: Any) -> None:
    cuda.use(0)
    before = free()
    with pytest.raises(OutOfMemory, match=r"CUDA: out of memory \(2\)"):
        cuda.Block(2 * torch.cuda.mem_get_info(0)[1])
    stream, buffer = cuda.Stream(0), cuda.Buffer((2, 3), np.float32)
    buffer.host[:] = 7
    stream.upload(buffer, 2)
    stream.wait()
    assert float((torch.ones(1000, device="cuda:0") * 2).sum()) == 2000, "PyTorch goes on, too"
    assert free() >= before - 256 * MIB


def test_a_thread_that_never_called_cuda_uses_the_streams_of_another(cuda: Any) -> None:
    stream, buffer = cuda.Stream(0), cuda.Buffer((3, 1000), np.int32)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            stream.use()
            buffer.host[:] = 5
            stream.upload(buffer, 3)
            stream.wait()
            buffer.host[:] = 0
            stream.download(buffer, 3)
            stream.wait()
            assert (buffer.host == 5).all() and cuda.is_pinned(buffer.host)
            cuda.Block(MIB)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert not thread.is_alive() and failed == []
