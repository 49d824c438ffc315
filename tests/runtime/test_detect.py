from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from pytest import CaptureFixture, LogCaptureFixture

from runtime.commands.detect_run import DetectError, DetectOptions, detect
from runtime.commands.shared import exit_status
from runtime.commands.signals import Terminated, finishing, terminating
from runtime.detector import Detector
from runtime.files.write import partial_path, replacing
from runtime.images.draw import draw_detections
from runtime.images.image import ImageError, read_image, write_image
from runtime.runs import RunsError, newest, validation_data
from runtime.streams.open import open_source
from runtime.streams.url import StreamError
from tests.at_fault import raises
from tests.processes import ROOT
from tests.runtime.as_found import coco_json
from tests.runtime.cameras import HttpCamera, clip, json_lines, object_clip, picture, until
from tests.runtime.conftest import make_card

OnnxFile = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten pictures, of which the fourth is broken, and files that are none."""
    path = tmp_path / "photos"
    path.mkdir()
    for i in range(10):
        write_image(path / f"frame{i}.png", picture(i))
    write_image(path / "frame10.png", picture(10))
    data = (path / "frame3.png").read_bytes()
    (path / "frame3.png").write_bytes(data[: len(data) // 2])
    (path / "notes.txt").write_text("no picture")
    (path / "sub.png").mkdir()
    return path


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return clip(tmp_path / "clip.avi")


# From here on: sources
def test_a_picture_is_a_source(folder: Path) -> None:
    source = open_source(folder / "frame1.png")
    assert (source.kind, source.name, source.count, source.is_video) == ("picture", "frame1", 1, False)
    (only,) = source
    assert (only.image == picture(1)).all() and (only.index, only.time_s, only.path) == (0, 0.0, folder / "frame1.png")
    with raises(ImageError, path=folder / "frame3.png", image="frame3.png"):
        open_source(folder / "frame3.png")


def test_a_folder_is_a_source_in_natural_order(folder: Path, caplog: LogCaptureFixture) -> None:
    broken: list[ImageError] = []
    source = open_source(str(folder), broken.append)
    assert (source.kind, source.name, source.count) == ("folder", "photos", 11)
    frames = list(source)
    assert [f.index for f in frames] == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert [int(f.image[0, 0, 1]) for f in frames] == [200 + f.index for f in frames]
    assert [e.path.name for e in broken] == ["frame3.png"] and not caplog.records
    assert len(list(open_source(folder))) == 10 and "frame3.png: truncated PNG" in caplog.text


def test_a_video_is_a_source(video: Path, caplog: LogCaptureFixture) -> None:
    source = open_source(video)
    assert (source.kind, source.name, source.count, source.fps, source.is_video) == ("video", "clip", 12, 10.0, True)
    frames = list(source)
    assert [f.index for f in frames] == list(range(12)) and not caplog.records
    assert [f.time_s for f in frames] == pytest.approx([i / 10 for i in range(12)])
    assert all(np.abs(f.image.astype(int) - picture(f.index)).max() <= 6 for f in frames)


def test_sources_that_cannot_be_opened(tmp_path: Path, capfd: CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    for source, message in (
        (tmp_path / "gone.mp4", r"gone\.mp4: no such file or folder"),
        (tmp_path / "empty", "no pictures in this folder .*jpg"),
        (tmp_path / "text.mp4", r"text\.mp4: cannot be opened; is it a video"),
        (93, "webcam 93: cannot be opened; is it plugged in"),
        ("93", "webcam 93: cannot be opened"),
        ("http://user:secret@127.0.0.1:9/x", r"cannot be opened \(Connection refused\); nothing listens there"),
    ):
        with pytest.raises(StreamError, match=message):
            open_source(source)


def test_stream_pairs_frames_with_detections(detector: Detector, folder: Path, video: Path) -> None:
    for source, count in ((folder, 10), (video, 12), (folder / "frame0.png", 1)):
        pairs = list(detector.stream(source, threshold=0.0))
        assert len(pairs) == count
        for image, found in pairs:
            assert image.shape == (64, 96, 3) and len(found) == 2
    with pytest.raises(StreamError):
        detector.stream("gone.mp4")  # before the first frame is asked for


# From here on: detect
def test_detect_in_a_picture(detector: Detector, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = detect(folder / "frame1.png", detector, DetectOptions(out=out))
    assert (summary.frames, summary.detections, summary.json_lines, summary.interrupted) == (1, 2, None, False)
    assert summary.pictures == out / "frame1.png" and [p.name for p in out.iterdir()] == ["frame1.png"]
    expected = draw_detections(picture(1), detector(picture(1))[0])
    assert (read_image(out / "frame1.png") == expected).all() and (expected != picture(1)).any()


def test_detect_in_a_folder(detector: Detector, folder: Path, tmp_path: Path) -> None:
    out, steps = tmp_path / "out", []
    summary = detect(folder, detector, DetectOptions(out=out), progress=lambda done, total: steps.append((done, total)))
    assert (summary.frames, summary.detections, summary.pictures) == (10, 20, out)
    assert [path.name for path, _ in summary.skipped] == ["frame3.png"] and steps[-1] == (11, 11)
    assert len(list(out.glob("*.png"))) == 10 and len(list(out.iterdir())) == 11
    rows = json_lines(out / "photos.jsonl")
    assert [row["frame"] for row in rows] == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert rows[0]["source"] == str(folder / "frame0.png") and rows[0]["time_s"] == 0
    assert rows[0]["detections"] == detector(picture(0))[0].to_json()


def test_detect_in_a_video(detector: Detector, video: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = detect(video, detector, DetectOptions(out=out, threshold=0.5))
    assert (summary.frames, summary.detections, summary.pictures) == (12, 12, out / "clip.mp4")
    assert sorted(p.name for p in out.iterdir()) == ["clip.jsonl", "clip.mp4"]
    written = list(open_source(out / "clip.mp4"))
    assert len(written) == 12 and written[0].image.shape == (64, 96, 3) and open_source(out / "clip.mp4").fps == 10
    rows = json_lines(out / "clip.jsonl")
    assert [row["time_s"] for row in rows] == pytest.approx([i / 10 for i in range(12)])
    assert {row["source"] for row in rows} == {str(video)} and rows[3]["detections"][0]["name"] == "cat"


def test_detect_without_saving_but_with_json(detector: Detector, video: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = detect(video, detector, DetectOptions(out=out, save=False, json_lines=tmp_path / "new" / "x.jsonl"))
    assert summary.pictures is None and not out.exists() and len(json_lines(tmp_path / "new" / "x.jsonl")) == 12
    assert detect(video, detector, DetectOptions(out=out, save=False)).json_lines is None and not out.exists()


def test_a_failure_leaves_nothing_half_written(detector: Detector, video: Path, tmp_path: Path) -> None:
    def fail(done: int, total: int | None) -> None:
        if done == 5:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        detect(video, detector, DetectOptions(out=tmp_path / "out"), progress=fail)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_output_folder_that_cannot_be_made(detector: Detector, folder: Path, video: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(DetectError, match="cannot make this output folder"):
        detect(video, detector, DetectOptions(out=folder / "file" / "out"))


def test_a_folder_of_broken_pictures_is_a_failure(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DetectError, match="none of its 1 pictures can be read; the first: truncated JPEG"):
        detect(tmp_path / "broken", detector, DetectOptions(out=tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []


def test_the_newest_model(tmp_path: Path) -> None:
    with raises(RunsError, path=tmp_path):
        newest("best.onnx", "best.pt", runs=tmp_path)
    for age, name in ((10, "a/best.pt"), (20, "b/best.pt"), (40, "c/best.onnx"), (30, "d/best.onnx")):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_bytes(b"")
        os.utime(path, (1e9 - age, 1e9 - age))
        if age == 20:
            assert newest("best.onnx", "best.pt", runs=tmp_path) == tmp_path / "a/best.pt"
    assert newest("best.onnx", "best.pt", runs=tmp_path) == tmp_path / "d/best.onnx"
    assert newest("best.pt", runs=tmp_path) == tmp_path / "a/best.pt"


def test_validation_data_is_what_is_given_or_what_the_card_names(coco_files: Callable[..., tuple[Path, Path]]) -> None:
    annotations, images = coco_files(coco_json({1: (8, 8)}, {0: "cat", 1: "bee", 2: "ant"}, []))
    bare = make_card()
    assert validation_data(bare, "x.onnx", annotations, images).class_names == bare.classes
    val = {"annotations": str(annotations), "images": str(images)}
    assert validation_data(make_card(training={"data": {"val": val}}), "x.onnx").annotations == annotations
    with raises(RunsError, path="x.onnx"):
        validation_data(bare, "x.onnx")
    with pytest.raises(RunsError, match="give its annotations, too"):
        validation_data(bare, "x.onnx", images=images)


# From here on: signals
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
def test_a_recording_is_complete_up_to_the_signal(onnx_file: OnnxFile, tmp_path: Path, number: signal.Signals) -> None:
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
def test_other_commands_leave_no_litter(tmp_path: Path, capsys: CaptureFixture[str], number: signal.Signals) -> None:
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
