"""What `runtime detect` writes: over nothing, under the right names, whole, and as long as the clock says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runtime.commands import detect_run as detect_module
from runtime.commands.detect_run import DetectError, DetectOptions, detect
from runtime.detector import Detector
from runtime.images.image import write_image
from runtime.streams.open import open_source
from runtime.streams.options import StreamOptions
from runtime.streams.source import Source, SourceFrame
from runtime.streams.streams import Streams
from runtime.streams.video_writer import VideoWriter
from tests.runtime.test_detect import frame as shaded
from tests.runtime.test_detect_sources import clip, frame, lines


@pytest.fixture
def detector(onnx_file: Callable[..., Path]) -> Detector:
    return Detector(onnx_file(), device="cpu", threads=1)


def test_originals_are_never_written_over(detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders among others get folders of their names: those of the originals, where the output is their parent."""
    originals = [tmp_path / place for place in ("cam1/0.png", "cam2/0.png", "deep/cam2/1.png")]
    for path in originals:
        write_image(path, frame(1))
    before = [path.read_bytes() for path in originals]
    monkeypatch.chdir(tmp_path)
    for given, out in ((["cam1", "cam2"], "."), (["cam1", "deep/cam2", "cam2"], "deep"), (["cam1/0.png"], "cam1")):
        with pytest.raises(DetectError, match="would overwrite"):
            detect(given, detector, DetectOptions(out=out))
    assert [path.read_bytes() for path in originals] == before
    with pytest.raises(DetectError, match="is a folder; expected the name of the file of JSON lines"):
        detect("cam1", detector, DetectOptions(out="out", json_lines="cam2"))


def test_links_to_pictures_are_named_as_they_are_here(detector: Detector, tmp_path: Path) -> None:
    """As data sets under version control have them."""
    for i in range(2):
        write_image(tmp_path / "store" / f"{i}{i}.png", frame(i))
        (tmp_path / "links").mkdir(exist_ok=True)
        (tmp_path / "links" / f"{i}.png").symlink_to(tmp_path / "store" / f"{i}{i}.png")
    detect(tmp_path / "links", detector, DetectOptions(out=tmp_path / "out"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "1.png", "links.jsonl"]


@pytest.mark.parametrize("first", ["broken.jpg", "clip.avi"])
def test_all_sources_fail_and_what_came_before_is_kept(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Whatever the failure is, and whichever of the sources had it."""
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    clip(tmp_path / "clip.avi", [0] * 5)

    def opened(origin: Any, *rest: Any) -> Any:
        source = open_source(origin, *rest)
        if source.kind != "video":
            return source
        whole = source.frames

        def part() -> Any:
            for i, one in enumerate(whole()):
                if i == 3:
                    raise cv2.error("decoder crashed")
                yield one

        return replace(source, frames=part)

    monkeypatch.setattr("runtime.streams.streams.open_source", opened)
    given = sorted([tmp_path / "broken.jpg", tmp_path / "clip.avi"], key=lambda path: path.name != first)
    summary = detect(given, detector, DetectOptions(out=tmp_path / "out"))
    assert summary.frames == 3 and {source.state.state for source in summary.sources} == {"failed"}
    assert (
        len(lines(tmp_path / "out" / "clip.jsonl")) == 3 and len(list(open_source(tmp_path / "out" / "clip.mp4"))) == 3
    )


@pytest.mark.parametrize("camera_fps", [25.0, 60.0])
def test_a_camera_that_is_faster_than_it_announces_makes_no_longer_video(tmp_path: Path, camera_fps: float) -> None:
    with VideoWriter(tmp_path / "camera.mp4", 25.0, live=True) as video:
        for i in range(int(4 * camera_fps) + 1):
            video.write(frame(1), i / camera_fps)
    assert len(list(open_source(tmp_path / "camera.mp4"))) == pytest.approx(101, abs=1)


def test_a_live_video_runs_as_the_clock_did(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.1, 0.4, 60.0])  # and it was away for a minute, of which a second is shown

    def open_fake(*_: object) -> Source:
        def frames() -> Iterator[SourceFrame]:
            for i in range(4):
                yield SourceFrame(shaded(15 * i), i, 0.0, None)

        return Source("webcam0", "webcam", None, 10.0, frames, live=True)

    take = Streams._take
    monkeypatch.setattr(detect_module, "open_source", open_fake)
    monkeypatch.setattr(Streams, "_take", lambda self, size: [replace(f, time_s=next(clock)) for f in take(self, size)])
    options = StreamOptions(reconnect=False, keep="all")
    summary = detect(0, detector, DetectOptions(out=tmp_path / "out", threshold=1.0, streams=options))
    assert summary.frames == 4 and [row["time_s"] for row in lines(tmp_path / "out" / "webcam0.jsonl")] == [
        0,
        0.1,
        0.4,
        60,
    ]
    greens = [int(f.image[30, 40, 1]) for f in open_source(tmp_path / "out" / "webcam0.mp4")]
    shown = [round((green - 200) / 15) for green in greens]
    assert shown == [0, 1, 1, 1, *[2] * 10, 3]


def test_long_names_get_their_results(detector: Detector, tmp_path: Path) -> None:
    """And one that cannot be written, here a size that the format does not hold, takes no other with it."""
    for name in ("a.png", "3" + "图" * 82 + ".png", "z.png"):
        write_image(tmp_path / "pics" / name, frame(1))
    wide = np.zeros((2, 20000, 3), np.uint8)
    (tmp_path / "pics" / "wide.webp").write_bytes(cv2.imencode(".png", wide)[1].tobytes())
    summary = detect(tmp_path / "pics", detector, DetectOptions(out=tmp_path / "out"))
    assert summary.frames == 4 and len(lines(tmp_path / "out" / "pics.jsonl")) == 4
    [(path, reason)] = summary.unwritten
    assert path == tmp_path / "out" / "wide.webp" and reason.startswith("cannot be encoded as .webp")
    assert len(list((tmp_path / "out").iterdir())) == 4
    clip(tmp_path / ("v" * 251 + ".avi"), [0] * 3)
    summary = detect(tmp_path / ("v" * 251 + ".avi"), detector, DetectOptions(out=tmp_path / "videos"))
    assert summary.pictures is not None and summary.pictures.is_file()
    assert summary.json_lines is not None and len(lines(summary.json_lines)) == 3
