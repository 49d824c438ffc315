"""A Detector in a forked process answers, or says that it is to be made there; it never waits for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runtime import Detector
from runtime.batcher.admission import BatcherClosed
from runtime.batcher.ends import FORKED

ROOT = Path(__file__).resolve().parents[2]


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
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert done.returncode == 0 and done.stdout.split() == ["1", "1"], done.stderr
