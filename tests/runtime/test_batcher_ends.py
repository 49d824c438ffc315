"""The batcher's ends: tasks that wait, closing in the middle, engines that hang, an interpreter that exits."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from runtime import BatcherClosed
from runtime.batcher.batcher import Batcher
from runtime.detections import Detections
from runtime.detector import Detector
from tests.runtime.echo import Echo, Gate, frame, number

ROOT = Path(__file__).parents[2]


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
    while batcher.metrics().blocked == 0:
        time.sleep(0.001)
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


def test_a_callback_that_exits_or_closes_harms_nobody(
    gated: tuple[Detector, Echo, Gate], caplog: pytest.LogCaptureFixture
) -> None:
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
    code = (
        "import sys, threading, time; sys.path.insert(0, '.')\n"
        "import numpy as np\n"
        "from runtime.card.card import Card\n"
        "from runtime.detector import Detector\n"
        "from runtime.backends.protocol import Backend, RawOutputs\n"
        "class Slow(Backend):\n"
        "    name, device, max_batch, fixed_batch = 'slow', 'cpu', 8, None\n"
        "    card = Card(kind='onnx', classes=('a',), input_size_hw=(8, 8), score_threshold=0.05,"
        " nms={'kind': 'portable', 'iou': 0.6, 'candidates': 10, 'detections': 2})\n"
        "    def __call__(self, images):\n"
        "        time.sleep(0.05)\n"
        "        return RawOutputs(np.zeros((len(images), 1), np.int32), np.zeros((len(images), 1, 4), np.float32),"
        " np.zeros((len(images), 1), np.float32), np.zeros((len(images), 1), np.int32))\n"
        "batcher = Detector(Slow()).batcher(max_batch=1, max_wait_ms=0)\n"
        "futures = [batcher.submit(np.zeros((8, 8, 3), np.uint8)) for _ in range(50)]\n"
        "futures[0].result()\n"
        "sys.exit(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3 and done.stderr == ""
