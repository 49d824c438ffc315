"""Sources that fail: cameras that die, hang and come back, files that are cut, decoders that raise."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from pytest import LogCaptureFixture, MonkeyPatch

from runtime import StreamError, StreamOptions, Streams
from runtime.streams import reader as stream_reader
from runtime.streams.capture import DecoderName, without_password
from runtime.streams.open import describe, open_source
from runtime.streams.reader import Reader
from tests.at_fault import raises
from tests.processes import python
from tests.runtime.cameras import (
    QUICK,
    FakeCapture,
    HttpCamera,
    cameras,
    clip,
    file_of,
    picture,
    turned_by_matrix,
    until,
    video,
)

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


@pytest.fixture
def camera() -> Iterator[HttpCamera]:
    camera = HttpCamera()
    camera.start()
    yield camera
    camera.die()


# From here on: faults
def test_a_dead_camera_never_stops_the_others(camera: HttpCamera, tmp_path: Path) -> None:
    with Streams([camera.url, "http://127.0.0.1:9/dead"], StreamOptions(**QUICK)) as reading:
        for frame in reading:
            assert frame.source == 0
            if frame.index > 20 and reading.states[1].reconnects > 2:
                break
        alive, dead = reading.states
    assert (alive.state, alive.error, alive.reconnects, alive.size_hw) == ("running", None, 0, (64, 96))
    assert dead.state in ("retrying", "connecting") and dead.frames == 0
    assert "dead: cannot be opened (Connection refused); nothing listens there; is the address right" in str(dead.error)
    assert "secret" not in alive.name and camera.connections == 1


def test_a_camera_that_dies_and_comes_back(camera: HttpCamera, decoder: DecoderName, caplog: LogCaptureFixture) -> None:
    with Streams([camera.url], StreamOptions(decoder=decoder, **QUICK)) as reading:
        frames = iter(reading)
        first = [next(frames) for _ in range(3)][-1]
        camera.die()
        waiter = threading.Thread(target=lambda: (until(lambda: reading.states[0].reconnects >= 2), camera.start()))
        waiter.start()
        last = first
        for frame in frames:
            assert frame.index > last.index and frame.time_s > last.time_s  # counted on over the gap
            last = frame
            if camera.connections == 2 and frame.index > first.index + 20:
                break
        waiter.join()
        state = reading.states[0]
    assert state.reconnects >= 2 and state.frames - 1 >= last.index and "cannot be opened" in str(state.error)
    assert "127.0.0.1" in caplog.text and "trying again" in caplog.text and "secret" not in caplog.text


def test_a_camera_that_hangs_is_left_and_connected_again(monkeypatch: MonkeyPatch, held: threading.Event) -> None:
    lives = iter([{3: held.wait}, {}])
    opened = cameras(monkeypatch, lambda: FakeCapture(None, at=next(lives), frames=None))
    with Streams([0], StreamOptions(stall_s=0.5, keep="all", **QUICK)) as reading:
        frames = iter(reading)
        assert [next(frames).index for _ in range(3)] == [0, 1, 2]
        until(lambda: reading.states[0].state == "stalled")
        for frame in frames:
            if frame.index > 10:
                break
        assert len(opened) == 2 and "gives no frame for 0.5 s" in str(reading.states[0].error)
        held.set()
        until(lambda: opened[0].closed > 0)  # the thread left behind wakes up, and takes its leave
    assert opened[1].closed > 0 and opened[0].reads == 4


def test_no_more_than_one_hanging_read_is_left_behind(monkeypatch: MonkeyPatch, held: threading.Event) -> None:
    opened = cameras(monkeypatch, lambda: FakeCapture(None, at={0: held.wait}, frames=0))
    with Streams([0, 0], StreamOptions(stall_s=0.02, give_up_s=1, **QUICK)) as reading:
        with pytest.raises(StreamError, match=r"0: gives no frame for 0\.02 s"):
            next(iter(reading))
        assert 2 < len(opened) <= 4 and all(s.state == "failed" for s in reading.states)
        held.set()


def test_all_cameras_are_told_to_end_before_one_is_waited_for(monkeypatch: MonkeyPatch) -> None:
    """Those that hang, hang at the same time, and have one limit together."""
    seen: list[tuple[str, float]] = []
    end, join = Reader.end, Reader.join
    monkeypatch.setattr(Reader, "end", lambda self: seen.append(("end", 0.0)) or end(self))
    monkeypatch.setattr(Reader, "join", lambda self, limit: seen.append(("join", limit)) or join(self, limit))
    opened = cameras(monkeypatch, lambda: FakeCapture(None, frames=None))
    with Streams([0] * 3, StreamOptions(**QUICK)) as reading:
        next(iter(reading))
        until(lambda: len(opened) == 3)
    assert [what for what, _ in seen] == ["end"] * 3 + ["join"] * 3
    assert len({limit for what, limit in seen if what == "join"}) == 1


@pytest.mark.parametrize(
    "url",
    [
        "rtsp://admin:secret@10.0.0.1/1", "rtsp://admin:se@secret@10.0.0.1/1", "rtsp://admin:a/secret@10.0.0.1/1",
        "rtsp://10.0.0.1/user=admin&password=secret&channel=1.sdp", "http://10.0.0.1/x?user=a&pwd=secret",
        "http://10.0.0.1/x?Token=secret#a",
    ],
)  # fmt: skip
def test_passwords_are_not_shown(url: str) -> None:
    shown = without_password(url)
    assert "secret" not in shown and "10.0.0.1" in shown and "..." in shown
    assert describe(url).name == "10.0.0.1"
    for plain in ("rtsp://10.0.0.1:554/1", "http://user@10.0.0.1/x?channel=1", "street.mp4"):
        assert without_password(plain) == plain


def test_a_file_that_hangs_has_failed(held: threading.Event) -> None:
    hanging, seen = FakeCapture(9, at={4: held.wait}), []
    with Streams([file_of(hanging)], StreamOptions(stall_s=0.5)) as reading:
        with pytest.raises(StreamError, match=r"clip: gives no frame for 0\.5 s"):
            for frame in reading:
                seen.append(frame.index)
        held.set()
    assert seen == [0, 1, 2, 3]


def test_a_decoder_that_raises_fails_its_source_only() -> None:
    def crash() -> None:
        raise cv2.error("decoder crashed")

    with Streams([file_of(FakeCapture(9, at={2: crash})), file_of(FakeCapture(9))]) as reading:
        frames = list(reading)
        states = reading.states
    assert [f.index for f in frames if f.source == 0] == [0, 1] and sum(f.source == 1 for f in frames) == 9
    assert [s.state for s in states] == ["failed", "ended"] and "decoder crashed" in str(states[0].error)
    with Streams([file_of(FakeCapture(9, at={0: crash}))]) as reading, pytest.raises(cv2.error, match="crashed"):
        next(iter(reading))


def test_a_camera_that_ends_without_reconnecting(monkeypatch: MonkeyPatch) -> None:
    cameras(monkeypatch, lambda: FakeCapture(None, frames=3), lambda: FakeCapture(None, frames=0))
    with Streams([0, 1], StreamOptions(reconnect=False, keep="all")) as reading:
        assert len(list(reading)) == 3
        assert [s.state for s in reading.states] == ["ended", "failed"]
    with Streams([1], StreamOptions(give_up_s=0.05, **QUICK)) as reading:
        with pytest.raises(StreamError, match="webcam 1: opened, but gives no frame"):
            next(iter(reading))
        assert reading.states[0].state == "failed"


@pytest.mark.parametrize(
    ("frames", "well_s", "give_up_s", "expected"),
    [
        (0, 5.0, None, [1, 2, 4, 5, 5, 5]),  # doubles up to its limit
        (3, 0.0, None, [1, 1, 1, 1, 1, 1]),  # begins again after a connection that was well
        (3, 5.0, None, [1, 2, 4, 5, 5, 5]),  # but not for a few frames
        (0, 5.0, 3.0, [1, 2, 3, 3, 3, 3]),  # is never longer than what is left of give_up_s
    ],
)
def test_back_off(
    monkeypatch: MonkeyPatch, frames: int, well_s: float, give_up_s: float | None, expected: list[int]
) -> None:
    monkeypatch.setattr(stream_reader, "WELL_S", well_s)
    cameras(monkeypatch, lambda: FakeCapture(None, frames=frames))
    pauses: list[float] = []
    options = StreamOptions(backoff_s=1, backoff_max_s=5, give_up_s=give_up_s)
    with Streams([0], options) as reading:
        reader = reading._readers[0]
        monkeypatch.setattr(reader, "_silent", lambda now: False)  # no time passes here
        if give_up_s is not None:
            monkeypatch.setattr(reader, "_silent_in", lambda now: give_up_s)

        def wait(timeout: float | None = None) -> bool:
            pauses.append(timeout or 0)
            return len(pauses) == 6

        monkeypatch.setattr(reader._stop, "wait", wait)
        thread = threading.Thread(target=lambda: list(reading))
        thread.start()
        until(lambda: len(pauses) == 6)
        reading.stop()
        thread.join()
    assert pauses == expected


def test_a_camera_is_given_up_while_it_pauses(monkeypatch: MonkeyPatch, caplog: LogCaptureFixture) -> None:
    """The next attempt, after an hour, is not waited for."""
    cameras(monkeypatch, lambda: FakeCapture(None, frames=0), lambda: FakeCapture(None))
    options = StreamOptions(backoff_s=3600, backoff_max_s=3600, give_up_s=0.5)
    with Streams([0, 1], options) as reading:
        for _ in reading:
            if reading.states[0].state == "failed":
                break
        state = reading.states[0]
    assert "no frame for 0.5 s, given up; the latest trouble: webcam 0: opened, but gives no frame" in str(state.error)
    assert "0: failed for good, and is not tried again" in caplog.text


def test_a_program_may_end_with_a_file_open(tmp_path: Path) -> None:
    """Its thread is inside a decoder or waits: it is ended before the interpreter is."""
    program = "import sys; from runtime import Streams; f = iter(Streams([sys.argv[1]])); next(f); print('frame')"
    done = python("-c", program, clip(tmp_path / "a.avi", 200))
    assert (done.returncode, done.stdout) == (0, "frame\n"), done.stderr


def test_a_change_of_resolution(caplog: LogCaptureFixture) -> None:
    with Streams([file_of(FakeCapture(6, sizes={3: (8, 10)}))]) as reading:
        assert [f.image.shape[:2] for f in reading] == [(4, 6)] * 3 + [(8, 10)] * 3
        assert reading.states[0].size_hw == (8, 10)
    assert "its frames change from (4, 6) to (8, 10) pixels" in caplog.text and len(caplog.records) == 1


def test_a_change_of_resolution_in_a_file(tmp_path: Path, decoder: DecoderName) -> None:
    jpegs = [cv2.imencode(".jpg", picture(i, (64, 96) if i < 6 else (96, 128)))[1].tobytes() for i in range(12)]
    (tmp_path / "a.mjpeg").write_bytes(b"".join(jpegs))
    with Streams([tmp_path / "a.mjpeg"], StreamOptions(decoder=decoder)) as reading:
        frames = list(reading)
    assert [f.index for f in frames] == list(range(12))
    after = {f.image.shape[:2] for f in frames[6:]}
    assert after == {(96, 128)} or (decoder, after) == ("opencv", {(64, 96)})  # newer OpenCVs keep the first size


def test_a_file_cut_in_the_middle(tmp_path: Path, decoder: DecoderName, caplog: LogCaptureFixture) -> None:
    whole, cut, hopeless = clip(tmp_path / "a.avi", 40), tmp_path / "cut.avi", tmp_path / "cut.mp4"
    data = whole.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    mp4 = clip(tmp_path / "a.mp4", 40).read_bytes()
    hopeless.write_bytes(mp4[: len(mp4) // 2])  # an MP4's index comes last
    options = StreamOptions(decoder=decoder)
    with Streams([cut, hopeless, whole], options) as reading:
        frames = list(reading)
        states = reading.states
    ended_early = [f.index for f in frames if f.source == 0]
    assert ended_early == list(range(len(ended_early))) and 10 <= len(ended_early) <= 30
    assert sum(f.source == 2 for f in frames) == 40
    assert states[1].state == "failed" and "cut.mp4: cannot be opened" in str(states[1].error)
    assert "is it truncated?" in caplog.text or "cut.avi" in str(states[0].error)


def test_pyav_reads_what_opencv_reads(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV, the extra video, is not installed")
    corner = np.zeros((64, 96, 3), np.uint8)
    corner[:20, :20] = 255
    path = video(tmp_path / "turned.mp4", [corner] * 3)
    whole = path.read_bytes()
    for matrix in ((1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)):
        path.write_bytes(whole)
        turned_by_matrix(path, matrix)
        by_opencv, by_pyav = (open_source(path, decoder=decoder) for decoder in ("opencv", "pyav"))
        assert (by_opencv.count, by_opencv.fps, by_opencv.live) == (by_pyav.count, by_pyav.fps, by_pyav.live)
        pairs = list(zip(by_opencv, by_pyav, strict=True))
        assert len(pairs) == 3
        for one, other in pairs:
            assert one.time_s == pytest.approx(other.time_s) and one.image.shape == other.image.shape
            assert np.abs(one.image.astype(int) - other.image).max() <= 8
    with pytest.raises(StreamError, match="webcams are read by the decoder opencv"):
        open_source(0, decoder="pyav")
    (tmp_path / "text.mp4").write_text("no video")
    with raises(StreamError, path=tmp_path / "text.mp4"):
        open_source(tmp_path / "text.mp4", decoder="pyav")


def test_without_the_extra_pyav_is_advice(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(StreamError, match=r"needs the package 'av': pip install 'isodet\[video\]'"):
        open_source(clip(tmp_path / "a.avi"), decoder="pyav")
