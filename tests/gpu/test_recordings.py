"""CUDA graphs of our own streams: taken down once, replayed with other content."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from runtime.backends.cuda.batch_sizes import bucket_of
from runtime.backends.protocol import BackendError

pytestmark = pytest.mark.gpu
WIDTH = 1000


class Loop:
    """To the GPU from `sent`, and back into `buffer.host`."""

    def __init__(self, cuda: Any, rows: int) -> None:
        self.stream, self.buffer = cuda.Stream(0), cuda.Buffer((rows, WIDTH), np.uint8)
        self.sent = cuda.pinned(rows * WIDTH).reshape(rows, WIDTH)

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
    failed: list[BaseException] = []

    def allocates() -> None:
        try:
            cuda.use(0)
            cuda.Block(1 << 20)
            cuda.pinned(1 << 20)
            other = Loop(cuda, 2)
            other.start(2)
            other.stream.wait()
            assert float(torch.ones(1 << 20, device="cuda").sum()) == 1 << 20
        except BaseException as error:
            failed.append(error)

    def work() -> bool:
        loop.start(7)
        thread = threading.Thread(target=allocates)
        thread.start()
        thread.join(60)
        return not thread.is_alive()

    recording = loop.stream.record(work)
    assert failed == []
    loop.assert_replays(recording, 7, 31)


def test_recordings_go_one_by_one(cuda: Any, loop: Loop) -> None:
    first, second = (loop.stream.record(lambda n=n: loop.start(n)) for n in (3, 6))
    loop.assert_replays(first, 3, 1)
    del first
    loop.assert_replays(second, 6, 2)
