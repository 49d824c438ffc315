"""Batches on their way to the GPU and back: from the host, from page-locked memory, and from frames that are there."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from runtime.backends.protocol import BackendError
from runtime.card.card import Card
from runtime.images.device_frames import DeviceFrame, device_frames

pytestmark = pytest.mark.gpu
HEIGHT, WIDTH, ROWS = 6, 10, 4
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
    made.stream.upload(pixels, ROWS)
    made.stream.wait()
    pixels.host[:] = 77
    return made


def arrived(staging: Any) -> np.ndarray:
    """What lies in the graph's input on the GPU."""
    pixels = staging.buffers["images"]
    staging.stream.wait()
    staging.stream.download(pixels, ROWS)
    staging.stream.wait()
    return pixels.host.copy()


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
        staging.stream.upload(buffer, ROWS)
        staging.stream.wait()
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
