"""CUDA on the real driver: memory on both sides, recordings of our own streams, and batches on their way."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from runtime.backends.cuda.batch_sizes import bucket_of
from runtime.backends.protocol import BackendError, OutOfMemory
from runtime.card.card import Card
from runtime.images.device_frames import DeviceFrame, device_frames
from tests.threads import in_threads

pytestmark = pytest.mark.gpu
MIB = 1 << 20
LOOP_WIDTH = 1000
HEIGHT, WIDTH, ROWS = 6, 10, 4


def free() -> int:
    return torch.cuda.mem_get_info(0)[0]


def up(stream: Any, buffer: Any, rows: int) -> None:
    stream.upload(buffer, rows)
    stream.wait()


def down(stream: Any, buffer: Any, rows: int) -> np.ndarray:
    """What lies in the first rows of `buffer` on the GPU; the other rows are zeros."""
    buffer.host[:] = 0
    stream.download(buffer, rows)
    stream.wait()
    return buffer.host.copy()


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
    up(stream, buffer, shape[0])
    np.testing.assert_array_equal(down(stream, buffer, shape[0]), sent)
    assert buffer.device % 256 == 0 and buffer.row_bytes * shape[0] == sent.nbytes


def test_rows_that_are_not_asked_for_stay(cuda: Any) -> None:
    stream, buffer = cuda.Stream(0), cuda.Buffer((4, 100), np.uint8)
    buffer.host[:] = 1
    stream.upload(buffer, 4)
    other = cuda.pinned(300)
    other[:] = 2
    stream.upload(buffer, 3, other.ctypes.data)
    assert down(stream, buffer, 2)[:, 0].tolist() == [2, 2, 0, 0]
    assert down(stream, buffer, 4)[:, 99].tolist() == [2, 2, 2, 1]


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
        up(stream, buffer, 4)
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
    up(stream, buffer, 2)
    assert float((torch.ones(1000, device="cuda:0") * 2).sum()) == 2000, "PyTorch goes on, too"
    assert free() >= before - 256 * MIB


def test_a_thread_that_never_called_cuda_uses_the_streams_of_another(cuda: Any) -> None:
    stream, buffer = cuda.Stream(0), cuda.Buffer((3, 1000), np.int32)

    def work() -> None:
        stream.use()
        buffer.host[:] = 5
        up(stream, buffer, 3)
        assert (down(stream, buffer, 3) == 5).all() and cuda.is_pinned(buffer.host)
        cuda.Block(MIB)

    in_threads(work)


# From here on: CUDA graphs of our own streams
class Loop:
    """To the GPU from `sent`, and back into `buffer.host`."""

    def __init__(self, cuda: Any, rows: int) -> None:
        self.stream, self.buffer = cuda.Stream(0), cuda.Buffer((rows, LOOP_WIDTH), np.uint8)
        self.sent = cuda.pinned(rows * LOOP_WIDTH).reshape(rows, LOOP_WIDTH)

    def start(self, rows: int) -> bool:
        self.stream.upload(self.buffer, rows, self.sent.ctypes.data)
        self.stream.download(self.buffer, rows)
        return True

    def assert_replays(self, recording: Any, rows: int, content: int) -> None:
        assert recording is not None
        self.sent[:], self.buffer.host[:] = content, 0
        self.stream.replay(recording)
        self.stream.wait()
        assert (self.buffer.host[:rows] == content).all() and not self.buffer.host[rows:].any()


@pytest.fixture
def loop(cuda: Any) -> Loop:
    return Loop(cuda, 64)


def test_each_bucket_is_taken_down_once_and_replayed(loop: Loop) -> None:
    recordings: dict[int, Any] = {}
    for count in (*range(1, 65), *range(64, 0, -1)):
        rows = bucket_of(count, 1, 64)
        if rows not in recordings:
            loop.buffer.host[:] = 3
            recordings[rows] = loop.stream.record(lambda rows=rows: loop.start(rows))
            loop.stream.wait()
            assert (loop.buffer.host == 3).all(), "nothing runs while it is taken down"
        loop.assert_replays(recordings[rows], rows, 100 + count)
    assert len(recordings) == 12


def test_a_graph_of_kernels_is_taken_down(cuda: Any, loop: Loop) -> None:
    """As an engine's: PyTorch's kernels on our stream."""
    ours = torch.cuda.ExternalStream(loop.stream.handle)
    x, y = torch.zeros(1000, device="cuda"), torch.zeros(1000, device="cuda")
    torch.mul(x, 3, out=y)
    torch.cuda.synchronize()

    def work() -> bool:
        with torch.cuda.stream(ours):
            torch.mul(x, 3, out=y)
        return True

    recording = loop.stream.record(work)
    for value in (2.0, 5.0):
        x.fill_(value)
        torch.cuda.synchronize()
        loop.stream.replay(recording)
        loop.stream.wait()
        assert (y == 3 * value).all()


def test_what_cannot_be_taken_down_gives_none(cuda: Any, loop: Loop) -> None:
    def waits() -> bool:
        loop.start(2)
        cuda.cudart.cudaStreamSynchronize(loop.stream._stream)  # as an engine does, which says nothing of it
        return True

    assert loop.stream.record(waits) is None
    loop.stream.wait()
    assert loop.stream.record(lambda: False) is None
    loop.assert_replays(loop.stream.record(lambda: loop.start(5)), 5, 8)


def test_what_the_work_raises_goes_through(loop: Loop) -> None:
    def waits() -> bool:
        loop.stream.wait()
        return True

    def raises() -> bool:
        loop.start(2)
        raise KeyError("a bug of the caller")

    with pytest.raises(BackendError, match=r"CUDA: .* \(90\d\)"):
        loop.stream.record(waits)
    with pytest.raises(KeyError):
        loop.stream.record(raises)
    loop.stream.wait()
    loop.assert_replays(loop.stream.record(lambda: loop.start(64)), 64, 9)


def test_another_thread_may_allocate_meanwhile(cuda: Any, loop: Loop) -> None:
    def allocates() -> None:
        cuda.use(0)
        cuda.Block(1 << 20)
        cuda.pinned(1 << 20)
        other = Loop(cuda, 2)
        other.start(2)
        other.stream.wait()
        assert float(torch.ones(1 << 20, device="cuda").sum()) == 1 << 20

    def work() -> bool:
        loop.start(7)
        in_threads(allocates)
        return True

    loop.assert_replays(loop.stream.record(work), 7, 31)


def test_recordings_go_one_by_one(cuda: Any, loop: Loop) -> None:
    first, second = (loop.stream.record(lambda n=n: loop.start(n)) for n in (3, 6))
    loop.assert_replays(first, 3, 1)
    del first
    loop.assert_replays(second, 6, 2)


# From here on: batches on their way to the GPU and back
TENSORS: dict[str, Any] = {
    "images": ((HEIGHT, WIDTH, 3), np.uint8), "num_dets": ((1,), np.int32), "boxes": ((2, 4), np.float32),
    "scores": ((2,), np.float32), "labels": ((2,), np.int32),
}  # fmt: skip


@pytest.fixture
def staging(cuda: Any) -> Any:
    from runtime.backends.cuda.staging import Staging

    nms = {"kind": "portable", "iou": 0.6, "candidates": 10, "detections": 2}
    made = Staging(cuda.Stream(0), Card("onnx", ("a",), (HEIGHT, WIDTH), 0.05, nms), "images", TENSORS, ROWS)
    pixels = made.buffers["images"]
    pixels.host[:] = 99
    up(made.stream, pixels, ROWS)
    pixels.host[:] = 77
    return made


def arrived(staging: Any) -> np.ndarray:
    """What lies in the graph's input on the GPU."""
    staging.stream.wait()
    return down(staging.stream, staging.buffers["images"], ROWS)


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, HEIGHT, WIDTH, 3), np.uint8)


@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("locked", [False, True])
def test_batches_from_the_host(cuda: Any, staging: Any, count: int, locked: bool) -> None:
    images = pictures(count)
    if locked:
        memory = cuda.pinned(images.nbytes).reshape(images.shape)
        memory[:] = images
        images = memory
    staging.put(images, ROWS)
    own = staging.buffers["images"].host
    assert (own[0] == 77).all() == locked, "page-locked memory is not copied once more"
    found = arrived(staging)
    np.testing.assert_array_equal(found[:count], images)
    assert (found[count:] == 99).all()


def test_what_the_graph_wrote_is_taken(staging: Any) -> None:
    rng, sent = np.random.default_rng(0), {}
    for name in ("num_dets", "boxes", "scores", "labels"):
        buffer = staging.buffers[name]
        sent[name] = rng.integers(0, 100, buffer.host.shape).astype(buffer.host.dtype)
        buffer.host[:] = sent[name]
        up(staging.stream, buffer, ROWS)
        buffer.host[:] = 0
    raw = staging.take(3, ROWS)
    for name, values in sent.items():
        np.testing.assert_array_equal(getattr(raw, name), values[:3])
        staging.buffers[name].host[:] = 0
    assert raw.boxes.any(), "the answer is a copy"


def torch_frames(images: np.ndarray) -> Any:
    return torch.from_numpy(images).cuda()


def torch_crop(images: np.ndarray) -> Any:
    whole = torch.zeros(len(images), HEIGHT + 3, WIDTH + 7, 3, dtype=torch.uint8, device="cuda")
    whole[:, 2 : 2 + HEIGHT, 5 : 5 + WIDTH] = torch.from_numpy(images).cuda()
    return whole[:, 2 : 2 + HEIGHT, 5 : 5 + WIDTH]


def cupy_frames(images: np.ndarray) -> Any:
    return pytest.importorskip("cupy").asarray(images)


def cupy_crop(images: np.ndarray) -> Any:
    whole = np.zeros((len(images), HEIGHT + 3, WIDTH + 7, 3), np.uint8)
    whole[:, 2 : 2 + HEIGHT, 5 : 5 + WIDTH] = images
    return cupy_frames(whole)[:, 2 : 2 + HEIGHT, 5 : 5 + WIDTH]


@pytest.mark.parametrize("make", [torch_frames, torch_crop, cupy_frames, cupy_crop])
def test_frames_that_are_on_the_gpu(staging: Any, make: Any) -> None:
    images = pictures(3)
    given = device_frames(make(images), "frames")
    assert len(given) == 3 and all(one.device in (None, "cuda:0") for one in given)
    staging.put(given, ROWS)
    found = arrived(staging)
    np.testing.assert_array_equal(found[:3], images)
    assert (found[3:] == 99).all()
    staging.put(given[2:], 1)
    np.testing.assert_array_equal(arrived(staging)[0], images[2])


def test_a_tensor_on_a_busy_stream_is_waited_for(staging: Any) -> None:
    """Its stream is PyTorch's current one, where it does not name any."""
    big, frame = torch.ones(4096, 4096, device="cuda"), torch.zeros(HEIGHT, WIDTH, 3, dtype=torch.uint8, device="cuda")
    for stream in (torch.cuda.Stream(), torch.cuda.default_stream()):
        frame.zero_()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for _ in range(200):
                torch.mm(big, big)
            frame.fill_(200)
            given = device_frames(frame, "frame")
            assert not stream.query(), "it was through before anyone could have waited"
            staging.put(given, 1)
        assert (arrived(staging)[0] == 200).all()


def test_a_cupy_array_on_a_busy_stream_is_waited_for(staging: Any) -> None:
    cupy = pytest.importorskip("cupy")
    big, frame = torch.ones(4096, 4096, device="cuda"), cupy.asarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    stream = cupy.cuda.Stream(non_blocking=True)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.ExternalStream(stream.ptr)), stream:
        for _ in range(200):
            torch.mm(big, big)
        frame.data.memset_async(200, frame.nbytes, stream)
        given = device_frames(frame, "frame")
        assert given[0].stream == stream.ptr and not stream.done, "nobody could have waited"
        staging.put(given, 1)
    assert (arrived(staging)[0] == 200).all()


def test_memory_that_is_not_the_gpus_is_refused(cuda: Any, staging: Any) -> None:
    for array in (np.zeros((HEIGHT, WIDTH, 3), np.uint8), cuda.pinned(HEIGHT * WIDTH * 3)):
        frame = DeviceFrame(array, array.ctypes.data, (HEIGHT, WIDTH), WIDTH * 3, None, None)
        with pytest.raises(BackendError, match="in the memory of a GPU; this pointer is none of CUDA's"):
            staging.put([frame], 1)
    staging.put(pictures(2), ROWS)
    np.testing.assert_array_equal(arrived(staging)[:2], pictures(2))


def test_the_stages_are_parts_of_the_whole(staging: Any) -> None:
    big = torch.ones(4096, 4096, device="cuda")
    ours = torch.cuda.ExternalStream(staging.stream.handle)
    torch.cuda.synchronize()

    def work() -> None:
        with torch.cuda.stream(ours):
            for _ in range(20):
                torch.mm(big, big)

    begun = time.perf_counter()
    raw, seconds = staging.timed(pictures(2), ROWS, work)
    wall = time.perf_counter() - begun
    assert list(seconds) == ["host to device", "engine", "device to host"] and len(raw.boxes) == 2
    assert min(seconds.values()) > 0 and sum(seconds.values()) <= wall
    assert seconds["engine"] > 0.5 * wall, "20 products of 4096 x 4096 take longer than 700 bytes"
