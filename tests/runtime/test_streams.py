"""Many sources at once: order, bounds, faults. Times are waited for, never measured."""

from __future__ import annotations

import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime import StreamError, StreamOptions, Streams, streams
from runtime.image import ImageError, write_image
from runtime.stream import Origin, Source, SourceFrame, describe, expand, of_capture, open_source
from runtime.stream_capture import without_password
from tests.runtime.cameras import FakeCapture, HttpCamera, picture, until

QUICK = {"backoff_s": 0.01, "backoff_max_s": 0.02}


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("isodet-source")])


@pytest.fixture
def camera() -> Iterator[HttpCamera]:
    camera = HttpCamera()
    camera.start()
    yield camera
    camera.die()


def file_of(capture: FakeCapture, name: str = "clip") -> Source:
    return of_capture(capture, name, "video", name)


def clip(path: Path, count: int = 12, code: str = "MJPG") -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), 10.0, (96, 64))
    assert writer.isOpened()
    for i in range(count):
        writer.write(picture(i))
    writer.release()
    return path


def cameras(monkeypatch: pytest.MonkeyPatch, *captures: Callable[[], FakeCapture]) -> list[FakeCapture]:
    """Webcams 0, 1, ... that are fakes; gives the list of those opened, which grows. A capture may refuse."""
    opened: list[FakeCapture] = []

    def open_fake(origin: Origin, on_broken: object, decoder: str, every: int, timeout_s: float) -> Source:
        capture = captures[int(str(origin))]()
        opened.append(capture)
        return of_capture(capture, f"webcam{origin}", "webcam", f"webcam {origin}", every=every, origin=origin)

    monkeypatch.setattr(streams, "open_source", open_fake)
    return opened


# ---------------------------------------------------------------------------------------------
# files: every frame, in order


def test_every_frame_of_every_file_comes_once_and_in_order(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for i in range(5):
        write_image(photos / f"{i}.png", picture(i))
    data = (photos / "3.png").read_bytes()
    (photos / "3.png").write_bytes(data[: len(data) // 2])
    broken: list[ImageError] = []
    with Streams([clip(tmp_path / "a.avi", 12), photos, clip(tmp_path / "b.avi", 7)], None, broken.append) as reading:
        batches = list(reading.batches(4))
        states = reading.states
    frames = [frame for batch in batches for frame in batch]
    assert all(1 <= len(batch) <= 4 for batch in batches) and len(reading) == 3
    assert [f.index for f in frames if f.source == 0] == list(range(12))
    assert [f.index for f in frames if f.source == 1] == [0, 1, 2, 4] and [e.path.name for e in broken] == ["3.png"]
    assert [f.index for f in frames if f.source == 2] == list(range(7))
    for f in frames:
        assert np.abs(f.image[0, 0].astype(int) - picture(f.index)[0, 0]).max() <= 6
        assert f.time_s == pytest.approx(0 if f.source == 1 else f.index / 10) and abs(f.clock_s - time.time()) < 300
    assert [(s.state, s.frames, s.dropped, s.size_hw) for s in states] == [
        ("ended", 12, 0, (64, 96)), ("ended", 4, 0, (64, 96)), ("ended", 7, 0, (64, 96)),
    ]  # fmt: skip


def test_every_nth_frame(tmp_path: Path) -> None:
    capture = FakeCapture(10)
    with Streams([of_capture(capture, "clip", "video", "clip", every=3)]) as reading:
        frames = list(reading)
    assert [f.index for f in frames] == [0, 3, 6, 9] == [int(f.image[0, 0, 0]) for f in frames]
    assert [f.time_s for f in frames] == pytest.approx([0, 0.3, 0.6, 0.9]) and (capture.reads, capture.skips) == (4, 6)
    source = open_source(clip(tmp_path / "a.avi", 12), every=5)
    assert (source.count, source.fps) == (3, 2.0) and [f.index for f in source] == [0, 5, 10]


@pytest.mark.parametrize("queue", [1, 3])
def test_a_slow_consumer_holds_a_file_back(queue: int) -> None:
    capture = FakeCapture(60)
    with Streams([file_of(capture)], StreamOptions(queue=queue)) as reading:
        for taken, frame in enumerate(reading, 1):
            assert frame.index == taken - 1
            if taken < 60 - queue - 1:
                until(lambda taken=taken: capture.reads >= taken + queue)  # it reads ahead as far as it may,
            assert capture.reads <= taken + queue + 1  # and one frame is in the thread's hand
    assert taken == 60 and capture.closed >= 1


def test_a_slow_consumer_gets_a_cameras_newest_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = threading.Event()
    opened = cameras(monkeypatch, lambda: FakeCapture(None, at={3: taken.wait}, frames=500))
    with Streams([0], StreamOptions(reconnect=False)) as reading:
        frames = iter(reading)
        first = next(frames)
        taken.set()
        until(lambda: reading.states[0].frames == 500)
        newest = next(frames)
        assert list(frames) == []
        state = reading.states[0]
    assert first.index < 3 and newest.index == 499 and int(newest.image[0, 0, 0]) == 499 % 256
    assert (state.state, state.frames, state.dropped) == ("ended", 500, 498)
    # Frames that nobody saw are read over: the one handed out, one waiting, one being read, one just replaced.
    assert len(opened[0].arrays) <= 4
    assert int(first.image[0, 0, 0]) == first.index % 256  # what was handed out is the consumer's, and stays


def test_keep_says_which_frames_may_go(monkeypatch: pytest.MonkeyPatch) -> None:
    cameras(monkeypatch, lambda: FakeCapture(None, frames=50))
    with Streams([0], StreamOptions(keep="all", reconnect=False, queue=2)) as reading:
        assert [frame.index for frame in reading] == list(range(50))
    capture = FakeCapture(50)
    with Streams([file_of(capture)], StreamOptions(keep="newest")) as reading:
        frames = iter(reading)
        next(frames)
        until(lambda: reading.states[0].state == "ended")
        assert [frame.index for frame in frames] in ([49], [])  # [] where the first was the last already


def test_batches_are_fair_and_grow_with_what_waits() -> None:
    captures = [FakeCapture(20) for _ in range(3)]
    with Streams([file_of(c) for c in captures], StreamOptions(queue=4)) as reading:
        until(lambda: next(iter(reading.batches(1))) is not None)
        until(lambda: all(c.reads >= 5 for c in captures))
        assert sorted(f.source for f in next(reading.batches())) == [0, 1, 2]
        sources = [f.source for f in next(reading.batches(6))]
        assert sorted(sources) == [0, 0, 1, 1, 2, 2] and sorted(sources[:3]) == [0, 1, 2]
    with pytest.raises(ValueError, match="size: expected at least 1, got 0"):
        next(reading.batches(0))


def test_many_files_take_turns() -> None:
    captures = [FakeCapture(3) for _ in range(20)]
    with Streams([file_of(c) for c in captures], StreamOptions(files_at_once=2, queue=1)) as reading:
        seen = []
        for frame in reading:
            seen.append((frame.source, frame.index))
            started = [s.source for s in reading.states if s.state != "idle"]
            assert sum(s.state in ("connecting", "running") for s in reading.states) <= 2 and len(started) >= 2
    assert sorted(seen) == [(s, i) for s in range(20) for i in range(3)]


# ---------------------------------------------------------------------------------------------
# faults


def test_a_dead_camera_never_stops_the_others(camera: HttpCamera, tmp_path: Path) -> None:
    with Streams([camera.url, "http://127.0.0.1:9/dead"], StreamOptions(**QUICK)) as reading:
        for frame in reading:
            assert frame.source == 0
            if frame.index > 20 and reading.states[1].reconnects > 2:
                break
        alive, dead = reading.states
    assert (alive.state, alive.error, alive.reconnects, alive.size_hw) == ("running", None, 0, (64, 96))
    assert dead.state in ("retrying", "connecting") and dead.frames == 0
    assert "dead: cannot be opened; is the address right" in str(dead.error)
    assert "secret" not in alive.name and camera.connections == 1


@pytest.mark.parametrize("decoder", ["opencv", "pyav"])
def test_a_camera_that_dies_and_comes_back(camera: HttpCamera, decoder: str, caplog: pytest.LogCaptureFixture) -> None:
    if decoder == "pyav":
        pytest.importorskip("av", reason="PyAV, the extra video, is not installed")
    with Streams([camera.url], StreamOptions(decoder=decoder, **QUICK)) as reading:  # type: ignore[arg-type]
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


def test_a_camera_that_hangs_is_left_and_connected_again(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()
    lives = iter([{3: let_go.wait}, {}])
    opened = cameras(monkeypatch, lambda: FakeCapture(None, at=next(lives), frames=None))
    try:
        with Streams([0], StreamOptions(stall_s=0.5, keep="all", **QUICK)) as reading:
            frames = iter(reading)
            assert [next(frames).index for _ in range(3)] == [0, 1, 2]
            until(lambda: reading.states[0].state == "stalled")
            for frame in frames:
                if frame.index > 10:
                    break
            assert len(opened) == 2 and "gives no frame for 0.5 s" in str(reading.states[0].error)
            let_go.set()
            until(lambda: opened[0].closed > 0)  # the thread left behind wakes up, and takes its leave
    finally:
        let_go.set()
    assert opened[1].closed > 0 and opened[0].reads == 4


def test_no_more_than_one_hanging_read_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()
    opened = cameras(monkeypatch, lambda: FakeCapture(None, at={0: let_go.wait}, frames=0))
    try:
        with Streams([0, 0], StreamOptions(stall_s=0.02, give_up_s=1, **QUICK)) as reading:
            with pytest.raises(StreamError, match=r"0: gives no frame for 0\.02 s"):
                next(iter(reading))
            assert 2 < len(opened) <= 4 and all(s.state == "failed" for s in reading.states)
            let_go.set()
    finally:
        let_go.set()


def test_many_cameras_that_hang_are_waited_for_together(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()
    opened = cameras(monkeypatch, lambda: FakeCapture(None, at={0: let_go.wait}, frames=0))
    monkeypatch.setattr(streams, "JOIN_S", 0.4)
    try:
        reading = Streams([0] * 8, StreamOptions(stall_s=60))
        threading.Thread(target=lambda: list(reading), daemon=True).start()
        until(lambda: len(opened) == 8)
        begun = time.monotonic()
        reading.close()
        assert time.monotonic() - begun < 8 * 0.4 / 2
    finally:
        let_go.set()


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


def test_a_file_that_hangs_has_failed() -> None:
    let_go = threading.Event()
    hanging, seen = FakeCapture(9, at={4: let_go.wait}), []
    with Streams([file_of(hanging)], StreamOptions(stall_s=0.5)) as reading:
        with pytest.raises(StreamError, match=r"clip: gives no frame for 0\.5 s"):
            for frame in reading:
                seen.append(frame.index)
        let_go.set()
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


def test_a_camera_that_ends_without_reconnecting(monkeypatch: pytest.MonkeyPatch) -> None:
    cameras(monkeypatch, lambda: FakeCapture(None, frames=3), lambda: FakeCapture(None, frames=0))
    with Streams([0, 1], StreamOptions(reconnect=False, keep="all")) as reading:
        assert len(list(reading)) == 3
        assert [s.state for s in reading.states] == ["ended", "failed"]
    with Streams([1], StreamOptions(give_up_s=0.05, **QUICK)) as reading:
        with pytest.raises(StreamError, match="webcam 1: opened, but gives no frame"):
            next(iter(reading))
        assert reading.states[0].state == "failed"


def test_back_off_doubles_up_to_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    cameras(monkeypatch, lambda: FakeCapture(None, frames=0))
    pauses: list[float] = []
    with Streams([0], StreamOptions(backoff_s=1, backoff_max_s=5)) as reading:
        stop = reading._readers[0]._stop

        def wait(timeout: float | None = None) -> bool:
            pauses.append(timeout or 0)
            return len(pauses) == 6

        monkeypatch.setattr(stop, "wait", wait)
        thread = threading.Thread(target=lambda: list(reading))
        thread.start()
        until(lambda: len(pauses) == 6)
        reading.stop()
        thread.join()
    assert pauses == [1, 2, 4, 5, 5, 5]


def test_a_change_of_resolution(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with Streams([file_of(FakeCapture(6, sizes={3: (8, 10)}))]) as reading:
        assert [f.image.shape[:2] for f in reading] == [(4, 6)] * 3 + [(8, 10)] * 3
        assert reading.states[0].size_hw == (8, 10)
    assert "its frames change from (4, 6) to (8, 10) pixels" in caplog.text and len(caplog.records) == 1
    jpegs = [cv2.imencode(".jpg", picture(i, (64, 96) if i < 6 else (96, 128)))[1].tobytes() for i in range(12)]
    (tmp_path / "a.mjpeg").write_bytes(b"".join(jpegs))
    for decoder in ("opencv", "pyav"):
        if decoder == "pyav":
            pytest.importorskip("av", reason="PyAV, the extra video, is not installed")
        with Streams([tmp_path / "a.mjpeg"], StreamOptions(decoder=decoder)) as reading:  # type: ignore[arg-type]
            frames = list(reading)
        assert [f.index for f in frames] == list(range(12)), decoder
        after = {f.image.shape[:2] for f in frames[6:]}
        assert after == {(96, 128)} or (
            decoder == "opencv" and after == {(64, 96)}
        )  # newer OpenCVs keep the first size


@pytest.mark.parametrize("decoder", ["opencv", "pyav"])
def test_a_file_cut_in_the_middle(tmp_path: Path, decoder: str, caplog: pytest.LogCaptureFixture) -> None:
    if decoder == "pyav":
        pytest.importorskip("av", reason="PyAV, the extra video, is not installed")
    whole, cut, hopeless = clip(tmp_path / "a.avi", 40), tmp_path / "cut.avi", tmp_path / "cut.mp4"
    data = whole.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    mp4 = clip(tmp_path / "a.mp4", 40, "mp4v").read_bytes()
    hopeless.write_bytes(mp4[: len(mp4) // 2])  # an MP4's index comes last
    options = StreamOptions(decoder=decoder)  # type: ignore[arg-type]
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
    path = tmp_path / "turned.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (96, 64))
    for _ in range(3):
        writer.write(corner)
    writer.release()
    data, upright = path.read_bytes(), struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    header = data.index(b"tkhd")
    place = data.index(upright, header)
    for a, b, c, d in ((1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)):  # phones turn videos by a matrix
        matrix = struct.pack(">9i", *(65536 * v for v in (a, b, 0, c, d, 0)), 0, 0, 1 << 30)
        path.write_bytes(data[:place] + matrix + data[place + 36 :])
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
    with pytest.raises(StreamError, match=r"text\.mp4: cannot be opened \(Invalid data"):
        open_source(tmp_path / "text.mp4", decoder="pyav")


def test_without_the_extra_pyav_is_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(StreamError, match=r"needs the package 'av': pip install 'isodet\[video\]'"):
        open_source(clip(tmp_path / "a.avi"), decoder="pyav")


# ---------------------------------------------------------------------------------------------
# beginning and end


def test_sources_that_are_not_there_are_told_at_once(tmp_path: Path) -> None:
    for sources, message in (
        ([tmp_path / "gone.mp4", 0], r"gone\.mp4: no such file or folder"),
        ([str(tmp_path / "*.mp4")], "matches no picture and no video"),
        ([], "at least one source"),
        ("clip.mp4", "expected a list of at least one source, got 'clip.mp4'"),
    ):
        with pytest.raises(StreamError, match=message):
            Streams(sources)  # type: ignore[arg-type]


def test_globs(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.png", "a/1.png"):
        write_image(tmp_path / name, picture(int(Path(name).stem)))
    clip(tmp_path / "b" / "c.avi", 3)
    (tmp_path / "b" / "notes.txt").write_text("neither")
    write_image(tmp_path / "[1].png", picture(1))
    source = open_source(f"{tmp_path}/**/*.png")
    assert (source.kind, source.name, source.count) == ("folder", tmp_path.name, 4)
    found = [str(f.path.relative_to(tmp_path)) for f in source if f.path is not None]
    assert found == ["[1].png", "a/1.png", "b/2.png", "b/10.png"]
    assert open_source(f"{tmp_path}/b/*").count == 2 and open_source(tmp_path / "[1].png").kind == "picture"
    assert expand(f"{tmp_path}/b/*") == [f"{tmp_path}/b/*", tmp_path / "b" / "c.avi"] and expand("0") == ["0"]
    with pytest.raises(StreamError, match="matches no pictures, but 1 videos"):
        open_source(f"{tmp_path}/b/*.avi")
    with Streams([f"{tmp_path}/b/*"]) as reading:
        assert len(reading) == 2 and len(list(reading)) == 5


def test_options_are_checked() -> None:
    for wrong, message in (
        ({"queue": 0}, "queue: expected a whole number of at least 1, got 0"), ({"every": 1.5}, "every"),
        ({"stall_s": 0}, "stall_s: expected a positive number of seconds"), ({"give_up_s": -1}, "give_up_s"),
        ({"backoff_s": float("inf")}, "backoff_s"), ({"keep": "oldest"}, "keep: expected auto, newest or all"),
        ({"decoder": "gstreamer"}, "decoder: expected opencv, pyav or nvidia, got 'gstreamer'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            StreamOptions(**wrong)  # type: ignore[arg-type]


def test_stop_ends_a_waiting_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()
    cameras(monkeypatch, lambda: FakeCapture(None, at={2: let_go.wait}))
    try:
        with Streams([0]) as reading:
            taken: list[SourceFrame] = []
            thread = threading.Thread(target=lambda: taken.extend(reading))
            thread.start()
            until(lambda: bool(taken) and reading.states[0].frames == 2)
            reading.stop()
            thread.join(30)
            assert not thread.is_alive() and len(taken) <= 2
            let_go.set()
    finally:
        let_go.set()


def test_closing_lets_everything_go(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    started, waiting = FakeCapture(100), FakeCapture(100)
    reading = Streams([file_of(started), file_of(waiting)], StreamOptions(files_at_once=1))
    next(iter(reading))
    reading.close()
    reading.close()
    assert started.closed and waiting.closed and waiting.reads == 0 and not caplog.records
    assert [s.state for s in reading.states] == ["ended", "ended"] and list(reading) == []


def test_detect_pairs_results_with_their_frames() -> None:
    with Streams([file_of(FakeCapture(7)), file_of(FakeCapture(4))]) as reading:
        sizes: list[int] = []

        def means(images: list[np.ndarray]) -> list[float]:
            sizes.append(len(images))
            return [float(image.mean()) for image in images]

        pairs = list(reading.detect(means, batch=3))
    assert len(pairs) == 11 and all(frame.index == mean for frame, mean in pairs) and max(sizes) <= 3
