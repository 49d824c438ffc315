"""Ctrl-C, SIGTERM and SIGHUP end a recording, and every other command without litter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.commands.detect_run import DetectOptions, detect
from runtime.commands.shared import exit_status
from runtime.commands.signals import Terminated, finishing, terminating
from runtime.detector import Detector
from runtime.files.write import partial_path, replacing
from runtime.streams.open import open_source
from tests.processes import ROOT
from tests.runtime.cameras import HttpCamera, json_lines, object_clip, until

ENDINGS = [signal.SIGTERM, signal.SIGHUP]
USUALLY = {signal.SIGINT: signal.default_int_handler, **dict.fromkeys(ENDINGS, signal.SIG_DFL)}


@pytest.fixture(autouse=True)
def _usual_meanings() -> Iterator[None]:
    """Whoever runs the tests may ignore them: nohup, and a shell that starts them in the background."""
    before = {number: signal.signal(number, handler) for number, handler in USUALLY.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", USUALLY)
def test_a_recording_is_complete_up_to_the_signal(
    onnx_file: Callable[..., Path], tmp_path: Path, number: signal.Signals
) -> None:
    camera = HttpCamera()
    camera.start()
    words = [sys.executable, "-m", "runtime", "detect", camera.url, "--model", onnx_file(), "--out", tmp_path / "out"]
    process = subprocess.Popen(
        [*map(str, words), "--device", "cpu", "--threads", "1"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    name = f"127.0.0.1_{camera.port}"
    partial = partial_path(tmp_path / "out" / f"{name}.jsonl")
    try:
        until(lambda: partial.is_file() and partial.stat().st_size > 0 or process.poll() is not None, 60)
        process.send_signal(number)
        told, trouble = process.communicate(timeout=60)
    finally:
        process.kill()
        camera.die()
    assert process.returncode == 0 and "(interrupted)" in told and "Traceback" not in trouble, told + trouble
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{name}.jsonl", f"{name}.mp4"]
    rows = json_lines(tmp_path / "out" / f"{name}.jsonl")
    assert f" in {len(rows)} frames" in told and all("secret" not in row["source"] for row in rows)
    # A frame stands until the next one came; where they come faster than the video runs, some have no place in it.
    video = open_source(tmp_path / "out" / f"{name}.mp4")
    assert len(list(video)) == pytest.approx(1 + video.fps * (rows[-1]["time_s"] - rows[0]["time_s"]), abs=1.5)


@pytest.mark.parametrize("number", USUALLY)
def test_a_second_signal_ends_at_once(detector: Detector, tmp_path: Path, number: signal.Signals) -> None:
    def press(times: int) -> Callable[[int, int | None], None]:
        return lambda done, total: [signal.raise_signal(number) for _ in range(times) if done == 3] and None

    source, once, twice = object_clip(tmp_path / "clip.mp4", [0] * 20), tmp_path / "once", tmp_path / "twice"
    summary = detect(source, detector, DetectOptions(out=once, batch=3), progress=press(1))
    assert summary.interrupted and 3 <= summary.frames <= 5  # the batch in hand is finished
    assert len(list(open_source(once / "clip.mp4"))) == summary.frames
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else Terminated) as raised:
        detect(source, detector, DetectOptions(out=twice), progress=press(2))
    assert number == signal.SIGINT or raised.value.status == 128 + number
    assert list(twice.iterdir()) == [] and signal.getsignal(number) is USUALLY[number]


@pytest.mark.parametrize("number", ENDINGS)
def test_other_commands_leave_nothing_half_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    def work(arguments: Namespace) -> int:
        with replacing(tmp_path / "best.onnx") as partial:
            partial.write_text("half")
            signal.raise_signal(number)
        return 0

    assert exit_status(Namespace(run=work, command="onnx"), "exporter", "export") == 128 + number
    assert capsys.readouterr().err.strip() == f"ended by {number.name}"
    assert list(tmp_path.iterdir()) == [] and signal.getsignal(number) is signal.SIG_DFL


def test_a_handler_of_the_applications_own_stays() -> None:
    heard = []
    signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    with terminating(), finishing(lambda: None) as stopped:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)
        assert not stopped.is_set()
    assert heard == [1]


def test_a_forked_worker_dies_of_the_signal_as_ever() -> None:
    ready, tell = os.pipe()
    with terminating():
        child = os.fork()
        if child == 0:
            os.write(tell, b"!")
            for _ in range(3000):
                time.sleep(0.01)
            os._exit(0)
        os.read(ready, 1)  # a signal before that is lost in the fork
        os.kill(child, signal.SIGTERM)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
