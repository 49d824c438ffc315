"""What `runtime detect` writes: over nothing, under the right names, whole, and as long as the clock says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pytest import CaptureFixture, LogCaptureFixture, MonkeyPatch

from runtime.__main__ import main
from runtime.commands import detect_outputs
from runtime.commands import detect_run as detect_module
from runtime.commands.detect_run import DetectError, DetectOptions, detect
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.images.draw import class_color, draw_detections
from runtime.images.image import read_image, write_image
from runtime.streams.open import open_source
from runtime.streams.options import StreamOptions
from runtime.streams.source import Source, SourceFrame
from runtime.streams.streams import Streams
from runtime.streams.track import Tracker, TrackError
from runtime.streams.video_writer import VideoWriter
from tests.runtime.cameras import json_lines, object_clip, object_frame, picture

OnnxFile = Callable[..., Path]


def test_originals_are_never_written_over(detector: Detector, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    """Folders among others get folders of their names: those of the originals, where the output is their parent."""
    originals = [tmp_path / place for place in ("cam1/0.png", "cam2/0.png", "deep/cam2/1.png")]
    for path in originals:
        write_image(path, object_frame(1))
    before = [path.read_bytes() for path in originals]
    monkeypatch.chdir(tmp_path)
    for given, out in (
        (["cam1", "cam2"], "."), (["cam1", "deep/cam2", "cam2"], "deep"), (["cam1/0.png"], "cam1"), ("cam1", "cam1"),
    ):  # fmt: skip
        with pytest.raises(DetectError, match="results would overwrite their sources"):
            detect(given, detector, DetectOptions(out=out))
    assert [path.read_bytes() for path in originals] == before
    with pytest.raises(DetectError, match="is a folder; expected the name of the file of JSON lines"):
        detect("cam1", detector, DetectOptions(out="out", json_lines="cam2"))


def test_links_to_pictures_are_named_as_they_are_here(detector: Detector, tmp_path: Path) -> None:
    """As data sets under version control have them."""
    for i in range(2):
        write_image(tmp_path / "store" / f"{i}{i}.png", object_frame(i))
        (tmp_path / "links").mkdir(exist_ok=True)
        (tmp_path / "links" / f"{i}.png").symlink_to(tmp_path / "store" / f"{i}{i}.png")
    detect(tmp_path / "links", detector, DetectOptions(out=tmp_path / "out"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "1.png", "links.jsonl"]


@pytest.mark.parametrize("first", ["broken.jpg", "clip.avi"])
def test_all_sources_fail_and_what_came_before_is_kept(
    detector: Detector, tmp_path: Path, monkeypatch: MonkeyPatch, first: str
) -> None:
    """Whatever the failure is, and whichever of the sources had it."""
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    object_clip(tmp_path / "clip.avi", [0] * 5)

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
        len(json_lines(tmp_path / "out" / "clip.jsonl")) == 3
        and len(list(open_source(tmp_path / "out" / "clip.mp4"))) == 3
    )


@pytest.mark.parametrize("camera_fps", [25.0, 60.0])
def test_a_camera_that_is_faster_than_it_announces_makes_no_longer_video(tmp_path: Path, camera_fps: float) -> None:
    with VideoWriter(tmp_path / "camera.mp4", 25.0, live=True) as video:
        for i in range(int(4 * camera_fps) + 1):
            video.write(object_frame(1), i / camera_fps)
    assert len(list(open_source(tmp_path / "camera.mp4"))) == pytest.approx(101, abs=1)


def test_a_live_video_runs_as_the_clock_did(detector: Detector, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    clock = iter([0.0, 0.1, 0.4, 60.0])  # and it was away for a minute, of which a second is shown

    def open_fake(*_: object) -> Source:
        def frames() -> Iterator[SourceFrame]:
            for i in range(4):
                yield SourceFrame(picture(15 * i), i, 0.0, None)

        return Source("webcam0", "webcam", None, 10.0, frames, live=True)

    take = Streams._take
    monkeypatch.setattr(detect_module, "open_source", open_fake)
    monkeypatch.setattr(Streams, "_take", lambda self, size: [replace(f, time_s=next(clock)) for f in take(self, size)])
    options = StreamOptions(reconnect=False, keep="all")
    summary = detect(0, detector, DetectOptions(out=tmp_path / "out", threshold=1.0, streams=options))
    rows = json_lines(tmp_path / "out" / "webcam0.jsonl")
    assert summary.frames == 4 and [row["time_s"] for row in rows] == [0, 0.1, 0.4, 60]
    greens = [int(f.image[30, 40, 1]) for f in open_source(tmp_path / "out" / "webcam0.mp4")]
    shown = [round((green - 200) / 15) for green in greens]
    assert shown == [0, 1, 1, 1, *[2] * 10, 3]


def test_long_names_get_their_results(detector: Detector, tmp_path: Path) -> None:
    """And one that cannot be written, here a size that the format does not hold, takes no other with it."""
    for name in ("a.png", "3" + "图" * 82 + ".png", "z.png"):
        write_image(tmp_path / "pics" / name, object_frame(1))
    wide = np.zeros((2, 20000, 3), np.uint8)
    (tmp_path / "pics" / "wide.webp").write_bytes(cv2.imencode(".png", wide)[1].tobytes())
    summary = detect(tmp_path / "pics", detector, DetectOptions(out=tmp_path / "out"))
    assert summary.frames == 4 and len(json_lines(tmp_path / "out" / "pics.jsonl")) == 4
    [(path, reason)] = summary.unwritten
    assert path == tmp_path / "out" / "wide.webp" and reason.startswith("cannot be encoded as .webp")
    assert len(list((tmp_path / "out").iterdir())) == 4
    object_clip(tmp_path / ("v" * 251 + ".avi"), [0] * 3)
    summary = detect(tmp_path / ("v" * 251 + ".avi"), detector, DetectOptions(out=tmp_path / "videos"))
    assert summary.pictures is not None and summary.pictures.is_file()
    assert summary.json_lines is not None and len(json_lines(summary.json_lines)) == 3


# From here on: several sources, classes, windows and tracks
def test_several_sources_have_an_output_each(detector: Detector, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    one, two = object_clip(tmp_path / "1" / "clip.avi", [0] * 12), object_clip(tmp_path / "2" / "clip.avi", [0] * 5)
    for place in ("photos/a.png", "photos/b.png", "x/a.png"):
        write_image(tmp_path / place, object_frame(1))
    batches: list[int] = []
    steps: list[tuple[int, int | None]] = []
    call = Detector.__call__
    monkeypatch.setattr(
        Detector, "__call__", lambda self, images, *rest: batches.append(len(images)) or call(self, images, *rest)
    )
    out, sources = tmp_path / "out", [one, two, tmp_path / "photos", tmp_path / "x" / "a.png"]
    summary = detect(sources, detector, DetectOptions(out=out), progress=lambda *step: steps.append(step))
    monkeypatch.undo()
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) == [
        "a.png", "clip-2.jsonl", "clip-2.mp4", "clip.jsonl", "clip.mp4", "photos.jsonl", "photos/a.png", "photos/b.png",
    ]  # fmt: skip
    assert [(s.frames, s.detections) for s in summary.sources] == [(12, 24), (5, 10), (2, 4), (1, 2)]
    assert (summary.frames, summary.detections, summary.pictures, summary.json_lines) == (20, 40, out, None)
    assert [s.json_lines for s in summary.sources] == [
        out / "clip.jsonl", out / "clip-2.jsonl", out / "photos.jsonl", None,
    ]  # fmt: skip
    assert len(list(open_source(out / "clip.mp4"))) == 12 and len(list(open_source(out / "clip-2.mp4"))) == 5
    assert [row["frame"] for row in json_lines(out / "clip.jsonl")] == list(range(12))
    assert (read_image(out / "a.png") == draw_detections(object_frame(1), detector(object_frame(1))[0])).all()
    assert sum(batches) == 20 and max(batches) <= 4 and steps[-1] == (20, 20)


def test_one_json_file_for_all(detector: Detector, tmp_path: Path) -> None:
    clips = [object_clip(tmp_path / f"{i}.avi", [0] * 3) for i in range(2)]
    options = DetectOptions(out=tmp_path / "out", save=False, json_lines=tmp_path / "all.jsonl")
    summary = detect(clips, detector, options)
    rows = json_lines(tmp_path / "all.jsonl")
    assert sorted((row["source"], row["frame"]) for row in rows) == [(str(c), i) for c in clips for i in range(3)]
    assert summary.json_lines == tmp_path / "all.jsonl" and summary.pictures is None and not (tmp_path / "out").exists()


def test_a_failing_source_spares_the_others(onnx_file: OnnxFile, tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    good, bad = object_clip(tmp_path / "good.avi", [0] * 6), tmp_path / "bad.avi"
    bad.write_bytes(b"no video")
    out = tmp_path / "out"
    argv = ["detect", str(good), str(bad), "--model", str(onnx_file()), "--out", str(out), "--device", "cpu", "--quiet"]
    assert main(argv) == 1
    told = capsys.readouterr()
    assert "12 detections in 6 frames" in told.out and f"wrote {out / 'good.mp4'}" in told.out
    assert f"wrote {out / 'bad.jsonl'}" not in told.out
    assert "error: after 0 frames: " in told.err and "bad.avi: cannot be opened" in told.err
    assert len(list(open_source(out / "good.mp4"))) == 6
    assert main([*argv[:1], str(bad), *argv[3:]]) == 1 and "cannot be opened" in capsys.readouterr().err


def test_a_glob_keeps_its_folders(detector: Detector, tmp_path: Path) -> None:
    for place in ("in/a/1.png", "in/b/1.png"):
        write_image(tmp_path / place, object_frame(1))
    summary = detect(f"{tmp_path}/in/*/*.png", detector, DetectOptions(out=tmp_path / "out"))
    assert summary.frames == 2 and summary.json_lines == tmp_path / "out" / "in.jsonl"
    assert sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png")) == [
        "a/1.png", "b/1.png",
    ]  # fmt: skip
    with pytest.raises(DetectError, match="would overwrite"):
        detect(f"{tmp_path}/in/*/*.png", detector, DetectOptions(out=tmp_path / "in"))


def test_classes_are_chosen_by_name_or_label(onnx_file: OnnxFile, tmp_path: Path) -> None:
    source, out = object_clip(tmp_path / "clip.avi", [0] * 2), tmp_path / "out"
    argv = ["detect", str(source), "--model", str(onnx_file()), "--out", str(out), "--device", "cpu", "--quiet"]
    for classes, found in (("ant", 2), ("bee,cat", 0), ("0", 2), ("1, 2", 0), ("bee, ant", 2)):
        assert main([*argv, "--classes", classes]) == 0
        assert [len(row["detections"]) for row in json_lines(out / "clip.jsonl")] == [found] * 2, classes
    assert main([*argv, "--classes", "dog"]) == 1
    with pytest.raises(SystemExit):
        main([*argv, "--classes", ","])


def test_every_nth_frame_makes_a_video_of_the_same_length(detector: Detector, tmp_path: Path) -> None:
    source = object_clip(tmp_path / "clip.avi", [0] * 12)
    detect(source, detector, DetectOptions(out=tmp_path / "out", streams=StreamOptions(every=4)))
    written = open_source(tmp_path / "out" / "clip.mp4")
    assert written.fps == 2.5 and len(list(written)) == 3
    assert [row["frame"] for row in json_lines(tmp_path / "out" / "clip.jsonl")] == [0, 4, 8]


# From here on: windows
def test_without_a_display_show_is_refused_and_nothing_dies(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    write_image(tmp_path / "a.png", object_frame(0))
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DetectError, match="cannot open windows.*leave out --show"):
        detect(tmp_path / "a.png", "no_model_is_loaded.onnx", DetectOptions(out=tmp_path / "out", show=True))
    assert not (tmp_path / "out").exists()


def test_q_closes_the_windows_and_ends(detector: Detector, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(detect_outputs.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0))
    monkeypatch.setattr(cv2, "imshow", lambda title, image: shown.append(title))
    monkeypatch.setattr(cv2, "waitKey", lambda wait: ord("q") if len(shown) == 3 else -1)
    source = object_clip(tmp_path / "clip.avi", [0] * 6)
    summary = detect(source, detector, DetectOptions(out=tmp_path / "out", show=True))
    assert summary.interrupted and summary.frames == 3 and set(shown) == {"isodet clip (q closes)"}
    assert len(list(open_source(tmp_path / "out" / "clip.mp4"))) == 3


# From here on: tracks
def test_without_the_extra_tracking_is_advice(detector: Detector, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(TrackError, match=r"needs the package '(supervision|trackers)': pip install 'isodet\[track\]'"):
        detect(object_clip(tmp_path / "clip.avi", [0]), detector, DetectOptions(out=tmp_path / "out", track=True))
    assert not (tmp_path / "out").exists()


def moving(i: int, scores: tuple[float, float]) -> Detections:
    """Two objects that cross the frame, one to the right and one to the left; the better one first."""
    boxes = np.array([[10 + 3 * i, 10, 40 + 3 * i, 40], [160 - 3 * i, 60, 190 - 3 * i, 90]], np.float32)
    order = np.argsort(scores)[::-1]
    return Detections(
        boxes[order], np.array(scores, np.float32)[order], np.array([0, 1], np.int32)[order], ("ant", "bee")
    )


@pytest.fixture
def _tracking() -> None:
    pytest.importorskip("supervision", reason="supervision, of the extra track, is not installed")
    pytest.importorskip("trackers", reason="trackers, of the extra track, is not installed")


@pytest.mark.usefixtures("_tracking")
@pytest.mark.parametrize("timed", [True, False])
def test_objects_keep_their_numbers(timed: bool) -> None:
    tracker = Tracker(0.5, 10.0)
    assert tracker.detect_from == 0.1 and Tracker(0.05, 10.0).detect_from == 0.05
    numbers: dict[str, set[int]] = {"ant": set(), "bee": set()}
    for i in range(30):
        # The ant fades between frames 10 and 15: its track goes on below the threshold. A stranger does not begin one.
        found, tracks = tracker.update(moving(i, (0.3 if 10 <= i < 15 else 0.9, 0.8)), i / 10 if timed else None)
        assert len(found) == len(tracks) == 2
        for detection, number in zip(found, tracks.tolist(), strict=True):
            if i > 2:
                numbers[detection.name].add(number)
    assert len(numbers["ant"]) == len(numbers["bee"]) == 1 and numbers["ant"] != numbers["bee"]
    assert -1 not in numbers["ant"] | numbers["bee"]


@pytest.mark.usefixtures("_tracking")
def test_what_is_below_the_limits_and_continues_nothing_is_not_reported() -> None:
    tracker = Tracker(np.array([0.5, 0.9], np.float32), 0.0)  # limits by class
    for i in range(4):
        found, tracks = tracker.update(moving(0, (0.2, 0.3)), i / 10)
        assert len(found) == len(tracks) == 0
    found, _ = tracker.update(moving(0, (0.6, 0.6)), 0.5)
    assert found.names[0] == "ant"
    assert len(tracker.update(Detections.empty(("ant", "bee")), 0.6)[0]) == 0


@pytest.mark.usefixtures("_tracking")
def test_detect_writes_and_draws_tracks(detector: Detector, tmp_path: Path) -> None:
    source = object_clip(tmp_path / "clip.avi", [0] * 6)
    sources = [source, object_clip(tmp_path / "other.avi", [0] * 4)]
    detect(sources, detector, DetectOptions(out=tmp_path / "out", track=True, threshold=0.8))
    rows = json_lines(tmp_path / "out" / "clip.jsonl")
    assert len(rows) == 6 and rows[0]["detections"][0]["track"] is None
    tracks = [row["detections"][0]["track"] for row in rows[2:]]
    assert len(set(tracks)) == 1 and tracks[0] is not None
    assert all(d["score"] >= 0.8 for d in rows[0]["detections"])


def test_a_tracked_object_is_drawn_in_its_own_color() -> None:
    found = moving(0, (0.9, 0.8))
    picture = np.zeros((120, 220, 3), np.uint8)
    for tracks, colors in (([7, 12], (7, 12)), ([-1, 12], (0, 12)), (None, (0, 1))):
        drawn = draw_detections(picture, found, tracks=tracks)
        assert tuple(drawn[40, 25]) == class_color(colors[0]) and tuple(drawn[90, 175]) == class_color(colors[1])


def test_content_says_what_a_picture_is(detector: Detector, tmp_path: Path, caplog: LogCaptureFixture) -> None:
    photos = tmp_path / "photos"
    write_image(photos / "a.jpg", object_frame(1))
    for name in ("b.jfif", "c.mpo", ".hidden.jpg"):
        (photos / name).write_bytes((photos / "a.jpg").read_bytes())
    (photos / "d.heic").write_bytes(b"\0\0\0\x18ftypheic")
    assert open_source(photos / "b.jfif").kind == "picture" and open_source(photos).count == 3
    assert "1 files are no pictures that are read (.heic)" in caplog.text
    assert open_source(str(photos / "*")).count == 3
    for source, names in ((photos / "b.jfif", ["b.jfif.jpg"]), (photos, ["a.jpg", "b.jfif.jpg", "c.mpo.jpg"])):
        out = tmp_path / f"out-{source.name}"
        detect(source, detector, DetectOptions(out=out))
        written = sorted(path for path in out.rglob("*") if path.suffix == ".jpg")
        assert [path.name for path in written] == names
        assert all(read_image(path).shape == (64, 96, 3) for path in written)
