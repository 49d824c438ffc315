"""Many sources at once: order, bounds, faults; and the decoder `nvidia`. Times are waited for, never measured."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from isodet.errors import ArgumentError
from runtime import StreamError, StreamOptions, Streams
from runtime.images.image import ImageError, write_image
from runtime.streams.open import expand, open_source
from runtime.streams.source import SourceFrame, of_capture
from tests.at_fault import raises
from tests.runtime.cameras import FakeCapture, cameras, clip, file_of, picture, turned_by_matrix, until, video

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


# From here on: files
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
    with raises(ArgumentError, key="size"):
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


# From here on: the beginning and the end
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
    for key, value in (
        ("queue", 0), ("every", 1.5), ("stall_s", 0), ("give_up_s", -1), ("backoff_s", float("inf")),
        ("keep", "oldest"), ("decoder", "gstreamer"),
    ):  # fmt: skip
        with raises(ArgumentError, key=f"StreamOptions.{key}"):
            StreamOptions(**{key: value})  # type: ignore[arg-type]


def test_stop_ends_a_waiting_iteration(monkeypatch: pytest.MonkeyPatch, held: threading.Event) -> None:
    cameras(monkeypatch, lambda: FakeCapture(None, at={2: held.wait}))
    with Streams([0]) as reading:
        taken: list[SourceFrame] = []
        thread = threading.Thread(target=lambda: taken.extend(reading))
        thread.start()
        until(lambda: bool(taken) and reading.states[0].frames == 2)
        reading.stop()
        thread.join(30)
        assert not thread.is_alive() and len(taken) <= 2
        held.set()


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


# From here on: the decoder `nvidia`, against a stand-in of PyNvVideoCodec 2.2
class ThreadedDecoder:
    """RGB frames in host memory that is written over by the next frame, not turned, as NVIDIA's."""

    ended = 0

    def __init__(
        self, enc_file_path: str, buffer_size: int, gpu_id: int = 0, use_device_memory: bool = True,
        output_color_type: str = "native",
    ) -> None:  # fmt: skip
        assert not use_device_memory and output_color_type == "rgb" and buffer_size >= 1
        self._video = cv2.VideoCapture(enc_file_path)
        self._video.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
        if not self._video.isOpened():
            raise RuntimeError("Demuxer: error\nat line 12")
        self._memory: np.ndarray | None = None

    def get_stream_metadata(self) -> SimpleNamespace:
        return SimpleNamespace(average_fps=self._video.get(cv2.CAP_PROP_FPS), num_frames=3)

    def get_batch_frames(self, batch_size: int) -> list[np.ndarray]:
        found, image = self._video.read()
        if not found:
            return []
        if self._memory is None:
            self._memory = np.empty_like(image)
        self._memory[:] = image[..., ::-1]
        return [self._memory]

    def end(self) -> None:
        type(self).ended += 1


@pytest.fixture
def nvidia(monkeypatch: pytest.MonkeyPatch) -> type[ThreadedDecoder]:
    ThreadedDecoder.ended = 0
    module: Any = SimpleNamespace(ThreadedDecoder=ThreadedDecoder, OutputColorType=SimpleNamespace(RGB="rgb"))
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", module)
    return ThreadedDecoder


def blues(path: Path) -> Path:
    """Three frames, each of another blue, with a red corner."""
    frames = [np.full((64, 96, 3), (blue, 0, 0), np.uint8) for blue in (60, 120, 180)]
    for image in frames:
        image[:24, :24] = (0, 0, 255)
    return video(path, frames)


@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)])
def test_it_gives_what_opencv_gives(
    tmp_path: Path, nvidia: type[ThreadedDecoder], matrix: tuple[int, int, int, int]
) -> None:
    path = blues(tmp_path / "a.mp4")
    turned_by_matrix(path, matrix)
    expected, got = open_source(path), open_source(path, decoder="nvidia")
    assert (got.count, got.fps, got.live) == (expected.count, expected.fps, expected.live) == (3, 10.0, False)
    frames = list(got)  # all of them kept: none may be written over
    assert [f.time_s for f in frames] == pytest.approx([0.0, 0.1, 0.2])
    for one, other in zip(expected, frames, strict=True):
        assert (one.image == other.image).all()
    assert nvidia.ended == 1


def test_skipped_frames_are_decoded_and_dropped(tmp_path: Path, nvidia: type[ThreadedDecoder]) -> None:
    frames = list(open_source(blues(tmp_path / "a.mp4"), decoder="nvidia", every=2))
    assert [f.index for f in frames] == [0, 2] and abs(int(frames[1].image[40, 60, 0]) - 180) < 12


def test_errors_say_what_to_do(tmp_path: Path, nvidia: type[ThreadedDecoder], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(StreamError, match=r"text\.mp4: cannot be decoded on the GPU \(Demuxer: error\); is it a video"):
        open_source(tmp_path / "text.mp4", decoder="nvidia")
    for source in (0, "rtsp://camera/1"):
        with pytest.raises(StreamError, match="the decoder nvidia reads video files"):
            open_source(source, decoder="nvidia")
    source = open_source(blues(tmp_path / "a.mp4"), decoder="nvidia")
    monkeypatch.setattr(ThreadedDecoder, "get_batch_frames", lambda *_: (_ for _ in ()).throw(RuntimeError("lost\nx")))
    with pytest.raises(StreamError, match=r"a\.mp4: cannot be decoded any further \(lost\)$"):
        list(source)
    assert nvidia.ended == 1
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", None)
    with pytest.raises(StreamError, match=r"pip install 'isodet\[nvidia\]', or take the decoder opencv"):
        open_source(tmp_path / "a.mp4", decoder="nvidia")


def test_a_machine_without_the_driver_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "PyNvVideoCodec.py").write_text("raise RuntimeError('Failed to load NVENC library\\n\\nTROUBLESHOOTING')")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "PyNvVideoCodec", raising=False)
    with pytest.raises(StreamError, match=r"finds no GPU that decodes: Failed to load NVENC library$"):
        open_source(blues(tmp_path / "a.mp4"), decoder="nvidia")


@pytest.mark.skipif("not __import__('importlib').util.find_spec('PyNvVideoCodec')", reason="PyNvVideoCodec is missing")
def test_on_a_gpu(tmp_path: Path) -> None:
    path = blues(tmp_path / "a.mp4")
    try:
        frames = list(open_source(path, decoder="nvidia"))
    except StreamError as error:
        pytest.skip(str(error))
    for one, other in zip(open_source(path), frames, strict=True):
        assert np.abs(one.image.astype(int) - other.image).max() <= 16
