"""A batcher in trouble: closed in the middle, engines that hang, fail or lack memory, exits and forks."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pytest import LogCaptureFixture, MonkeyPatch

from models.detector import Detector as Network
from runtime import BatcherClosed, Detector
from runtime.backends.ort.backend import OrtBackend
from runtime.backends.protocol import Backend, BackendError, OutOfMemory, RawOutputs, joined, rows_of
from runtime.backends.torch.backend import TorchBackend
from runtime.batcher.batcher import Batcher
from runtime.batcher.ends import FORKED
from runtime.card.card import Card
from runtime.detections import Detections
from tests.at_fault import raises
from tests.export.networks import save_network
from tests.models.small import SIZE, small
from tests.processes import python
from tests.runtime.cameras import until
from tests.runtime.echo import FOREVER, Echo, Gate, frame, number


def test_awaiting(gated: tuple[Detector, Echo, Gate]) -> None:
    detector, _, gate = gated

    async def main(batcher: Batcher) -> None:
        tasks = [asyncio.ensure_future(batcher.detect(frame(i))) for i in range(12)]
        await asyncio.get_running_loop().run_in_executor(None, gate.reached.wait, 60)
        while batcher.metrics().blocked == 0:  # the loop goes on while tasks wait for places
            await asyncio.sleep(0.001)
        tasks[11].cancel()
        gate.open.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [number(f) for f in found[:11]] == list(range(11))
        assert isinstance(found[11], asyncio.CancelledError)

    with detector.batcher(2, 0, queue=3) as batcher:
        asyncio.run(main(batcher))


def test_closing_in_the_middle(gated: tuple[Detector, Echo, Gate]) -> None:
    detector, echo, gate = gated
    batcher = detector.batcher(2, 0, queue=4)
    running = batcher.submit(frame(0))
    assert gate.reached.wait(60)
    waiting = [batcher.submit(frame(i)) for i in range(1, 5)]
    late: list[Future[Detections]] = []
    blocked = threading.Thread(target=lambda: late.append(batcher.submit(frame(5))))
    blocked.start()
    until(lambda: batcher.metrics().blocked == 1)
    closing = threading.Thread(target=batcher.close, kwargs={"drain": False})
    closing.start()
    blocked.join(60)
    with pytest.raises(BatcherClosed, match="is closed"):
        batcher.submit(frame(6))
    for future in (*waiting, *late):
        with pytest.raises(BatcherClosed, match="before this frame ran"):
            future.result(60)
    assert not running.done()
    gate.open.set()
    closing.join(60)
    assert number(running.result(60)) == 0 and echo.batches == [[0]] and batcher.metrics().closed == 5
    batcher.close()


def test_an_error_in_the_block_does_not_wait_for_the_queue(gated: tuple[Detector, Echo, Gate]) -> None:
    detector, _, gate = gated
    with pytest.raises(KeyboardInterrupt), detector.batcher(1, 0) as batcher:
        running = batcher.submit(frame(0))
        assert gate.reached.wait(60)
        waiting = batcher.submit(frame(1))
        gate.open.set()
        raise KeyboardInterrupt
    assert number(running.result()) == 0 or isinstance(running.exception(), BatcherClosed)
    assert waiting.done()


def test_an_engine_that_hangs_keeps_nobody_waiting(gated: tuple[Detector, Echo, Gate]) -> None:
    detector, _, gate = gated
    batcher = detector.batcher(1, 0)
    futures = [batcher.submit(frame(i)) for i in range(3)]
    assert gate.reached.wait(60)
    batcher.close(timeout=0.01)
    for future in futures:
        with pytest.raises(BatcherClosed, match="no answer within 0.01 s"):
            future.result(0)
    gate.open.set()  # the engine comes back: its answer is too late, and nobody stumbles over it
    for thread in threading.enumerate():
        if thread.name.startswith("batcher"):
            thread.join(60)
    assert batcher.metrics().closed == 3 and batcher.metrics().answered == 0


def test_callbacks_may_exit_or_close(gated: tuple[Detector, Echo, Gate], caplog: LogCaptureFixture) -> None:
    detector, _, gate = gated

    def leave(_: Any) -> None:
        raise SystemExit

    with detector.batcher(1, 0) as batcher:
        first, second = batcher.submit(frame(1)), batcher.submit(frame(2))
        first.add_done_callback(leave)
        second.add_done_callback(lambda _: batcher.close())  # it does not wait for threads that wait for it
        gate.open.set()
        assert number(second.result(60)) == 2
    assert number(first.result()) == 1
    assert [r.getMessage() for r in caplog.records] == ["a callback of a future raised"]


def test_the_interpreter_exits_with_batchers_open() -> None:
    """Nobody closed it, a batch is running and others wait: the process ends, and with the status of its own."""
    code = """
import sys, time
from runtime import Detector
from tests.runtime.conftest import make_card
from tests.runtime.echo import Echo, frame
batcher = Detector(Echo(make_card(), before=lambda _: time.sleep(0.05))).batcher(max_batch=1, max_wait_ms=0)
futures = [batcher.submit(frame(0)) for _ in range(50)]
futures[0].result()
sys.exit(3)
"""
    done = python("-c", code)
    assert done.returncode == 3 and done.stderr == ""


# From here on: engines that fail or lack memory
def test_an_engine_that_raises_fails_its_batch_only(card: Card) -> None:
    def odd(numbers: list[int]) -> None:
        if numbers[0] == 2:
            raise BackendError("engine fell over")

    with Detector(Echo(card, before=odd), threshold=0.0).batcher(2, FOREVER) as batcher:
        futures = [batcher.submit(frame(i)) for i in range(6)]
    assert [f.exception() is None for f in futures] == [True, True, False, False, True, True]
    with pytest.raises(BackendError, match="engine fell over"):
        futures[3].result()
    assert batcher.metrics().failed == 2


def test_outputs_that_are_no_detections_fail_their_frame_only(card: Card) -> None:
    class Wrong(Echo):
        def __call__(self, images: np.ndarray) -> RawOutputs:
            raw = super().__call__(images)
            raw.labels[1] = 77
            return raw

    with Detector(Wrong(card), threshold=0.0).batcher(3, FOREVER) as batcher:
        futures = [batcher.submit(frame(i)) for i in range(3)]
    assert [f.exception() is None for f in futures] == [True, False, True]
    assert "expected 0 to 2, got 77" in str(futures[1].exception())


def test_several_workers_want_a_backend_that_allows_them(card: Card) -> None:
    class Single(Echo):
        context = Backend.context

    with pytest.raises(BackendError, match="echo runs one call at a time: expected workers=1"):
        Detector(Single(card)).batcher(workers=2)

    both = threading.Barrier(2, timeout=60)
    with Detector(Echo(card, before=lambda _: both.wait() and None), threshold=0.0).batcher(1, 0, workers=2) as batcher:
        futures = [batcher.submit(frame(i)) for i in range(4)]  # a batch passes only while another one runs
    assert [number(f.result()) for f in futures] == [0, 1, 2, 3]


@pytest.mark.parametrize("fixed", [None, 4])
def test_batches_keep_to_what_the_graph_takes(card: Card, fixed: int | None) -> None:
    echo = Echo(card, max_batch=fixed or 6)
    echo.fixed_batch = fixed  # type: ignore[assignment]
    with Detector(echo, threshold=0.0).batcher(64, 5) as batcher:
        futures = [batcher.submit(frame(i)) for i in range(14)]
    assert [number(f.result()) for f in futures] == list(range(14)) and batcher.max_batch == (fixed or 6)
    assert all(len(b) == 4 if fixed else len(b) <= 6 for b in echo.batches)


def test_memory_that_is_short_makes_batches_smaller(card: Card, caplog: LogCaptureFixture) -> None:
    def small(numbers: list[int]) -> None:
        if len(numbers) > 3 or numbers[0] == 666:
            raise OutOfMemory("out of memory")

    echo = Echo(card, before=small)
    detector = Detector(echo, threshold=0.0)
    with detector.batcher(16, FOREVER) as batcher:
        futures = [batcher.submit(frame(i)) for i in range(32)]
        assert [number(f.result(60)) for f in futures] == list(range(32))
    (warning,) = caplog.records
    assert warning.getMessage().startswith("cpu has no memory for a batch of 16: batches of 2 from now on")
    assert [number(d) for d in detector([frame(i) for i in range(5)])] == list(range(5))
    assert [len(b) for b in echo.batches[:3]] == [16, 8, 4] and {len(b) for b in echo.batches[3:]} == {2, 1}
    with pytest.raises(OutOfMemory):  # one image does not fit
        detector(frame(666))
    assert len(caplog.records) == 1


def test_outputs_of_parts_are_those_of_the_whole(card: Card) -> None:
    """Also where a graph leaves an output out, as one without NMS does."""
    whole = Echo(card)(np.stack([frame(i) for i in range(5)]))
    for raw in (whole, whole._replace(num_dets=None)):  # type: ignore[arg-type]
        again = joined([rows_of(raw, slice(0, 2)), rows_of(raw, slice(2, 5))])
        for column, expected in zip(again, raw, strict=True):
            np.testing.assert_array_equal(column, expected)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("bfc_arena.cc:376 AllocateRawInternal Failed to allocate memory for requested buffer of size 83", OutOfMemory),
        ("CUDA failure 2: out of memory ; GPU=0", OutOfMemory),
        ("Got invalid dimensions for input: images", BackendError),
    ],
)
def test_onnx_runtime_says_in_words_that_memory_is_short(
    onnx_file: Callable[..., Path], monkeypatch: MonkeyPatch, words: str, kind: type[BackendError]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(words)

    backend = OrtBackend(onnx_file(), "cpu", threads=1)
    monkeypatch.setattr(backend, "_session", SimpleNamespace(run=fail))
    with pytest.raises(BackendError, match=f"failed on a batch of 2: .*{words[-12:]}") as caught:
        backend(np.zeros((2, 32, 48, 3), np.uint8))
    assert caught.type is kind


def test_pytorch_has_an_error_for_it(card: Card) -> None:
    class Large(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    with pytest.raises(OutOfMemory, match="failed on a batch of 3: CUDA out of memory"):
        TorchBackend(Large(), card, "cpu")(np.zeros((3, 32, 48, 3), np.uint8))


def test_short_memory_names_the_checkpoint(tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    backend = TorchBackend.load(save_network(tmp_path / "best.pt", Network(small())), "cpu")
    backend.model.register_forward_pre_hook(fail)
    with raises(OutOfMemory, path=tmp_path / "best.pt"):
        backend(np.zeros((1, *SIZE, 3), np.uint8))


def test_real_engines_run_in_several_threads_on_one_set_of_weights(onnx_file: Callable[..., Path]) -> None:
    detector = Detector(onnx_file(), device="cpu", threads=1, threshold=0.0)
    frames = [np.full((32 + i, 48, 3), (i % 3, 100 + i, 8), np.uint8) for i in range(40)]
    with detector.batcher(4, 0, workers=3) as batcher:
        found = [future.result() for future in [batcher.submit(f) for f in frames]]
    for d, alone in zip(found, detector(frames), strict=True):
        np.testing.assert_array_equal(d.boxes_xyxy, alone.boxes_xyxy)
        np.testing.assert_array_equal(d.scores, alone.scores)


def test_page_locked_memory_that_is_short_costs_speed_and_no_frame(card: Card, caplog: LogCaptureFixture) -> None:
    class Short(Echo):
        device = "cuda:0"

        def host_memory(self, size: int) -> np.ndarray:
            raise OutOfMemory("cannot lock")

    with Detector(Short(card), threshold=0.0).batcher(4, 1) as batcher:
        assert [number(batcher.submit(frame(i)).result(30)) for i in range(8)] == list(range(8))
    assert "through ordinary memory: cannot lock" in caplog.text


# From here on: processes that are forked
def in_child(work: Callable[[], str], seconds: int = 60) -> str:
    """What `work` gives in a fork of this process."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        try:
            told = work()
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
        os.write(write, told.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return told or "no answer"


def test_a_batcher_says_that_it_was_forked(onnx_file: Callable[..., Path]) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    with Detector(onnx_file(), device="cpu", threads=1).batcher() as batcher:
        batcher.submit(image).result(30)

        def submit() -> str:
            try:
                return str(batcher.submit(image).result(10))
            finally:
                batcher.close()  # waits for nobody

        assert in_child(submit) == f"BatcherClosed: {FORKED}"
        assert len(batcher.submit(image).result(30)) >= 0, "the parent's goes on"
    with pytest.raises(BatcherClosed, match="the batcher is closed"):
        batcher.submit(image)


def test_the_counts_of_a_forked_batcher_are_refused(onnx_file: Callable[..., Path]) -> None:
    """They would stand still at the parent's; and its lock may be held by a thread that the child has not."""
    with Detector(onnx_file(), device="cpu", threads=1).batcher() as batcher:
        batcher.submit(np.zeros((64, 64, 3), np.uint8)).result(30)
        with batcher._work:  # as a thread of the parent may at the moment of the fork
            assert in_child(lambda: str(batcher.metrics()), seconds=5) == f"BatcherClosed: {FORKED}"
        assert batcher.metrics().submitted == 1
    assert batcher.metrics().answered == 1, "after its end it still tells"


def test_a_model_on_a_gpu_says_that_it_was_forked(
    onnx_file: Callable[..., Path],
) -> None:
    detector = Detector(onnx_file(), device="cpu", threads=1)
    detector.backend.device = "cuda:0"  # as far as the check can see
    image = np.zeros((64, 64, 3), np.uint8)
    detector(image)
    told = in_child(lambda: str(detector(image)))
    assert told.startswith("BackendError: the model was loaded onto cuda:0 in another process"), told


def test_pytorch_answers_in_a_fork(shapes_run: Path) -> None:
    """In a process of its own: with more than one thread the fork would wait for those of its parent."""
    code = f"""
import os, signal, numpy as np
from runtime import Detector
detector = Detector({str(shapes_run / "best.pt")!r}, device="cpu", threads=2)
image = np.zeros((64, 64, 3), np.uint8)
print(len(detector(image)), flush=True)
if os.fork() == 0:
    signal.alarm(60)
    print(len(detector(image)), flush=True)
    os._exit(0)
raise SystemExit(os.WTERMSIG(os.wait()[1]))
"""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = python("-c", code, env=environment)
    assert done.returncode == 0 and done.stdout.split() == ["1", "1"], done.stderr
