"""A process that used the GPU ends, and says nothing of it: nothing hangs, nothing is written where it is gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]

USES = """
import sys
import numpy as np
import torch
from runtime import BackendOptions, Detector
from runtime.backends.cuda.memory import Buffer, Stream, pinned
from tests.gpu.networks import detector, pictures

stream = Stream(0)
buffer, memory = Buffer((4, 1 << 20), np.uint8), pinned(1 << 20)
memory[:] = 5
recording = stream.record(lambda: stream.upload(buffer, 1, memory.ctypes.data) is None)
for _ in range(100):
    stream.replay(recording)
    stream.upload(buffer, 4)
    stream.download(buffer, 4)

frames = pictures(40)
kept = []
for options in (BackendOptions(), BackendOptions(cuda_graphs=True)):
    one = detector("atss", "cuda", options)
    batcher = one.batcher(4, 1.0, workers=2)
    futures = [batcher.submit(frame) for frame in frames]
    futures[0].result(60)
    kept += [one, batcher, futures]
there = torch.from_numpy(np.stack(frames)).cuda()
kept.append(one(there))
print("used", flush=True)
"""


def ends(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_normally() -> None:
    """With batchers that nobody closed, and work under way on every stream."""
    done = ends(USES)
    assert (done.returncode, done.stdout, done.stderr) == (0, "used\n", "")


def test_by_an_exception() -> None:
    done = ends(USES + "\nraise KeyError('as applications end')\n")
    assert done.returncode == 1 and done.stdout == "used\n"
    assert done.stderr.startswith("Traceback") and done.stderr.endswith("KeyError: 'as applications end'\n")
    assert done.stderr.count("Traceback") == 1 and "ignored" not in done.stderr


def test_by_sys_exit_in_the_middle_of_a_recording() -> None:
    done = ends(USES + "\nstream.record(lambda: sys.exit(3))\n")
    assert (done.returncode, done.stderr) == (3, "")
