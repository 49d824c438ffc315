"""Videos: written whole or with an error that names them, and read as they are found."""

from __future__ import annotations

import errno
import logging
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.commands import detect_outputs
from runtime.commands.detect_run import DetectError, DetectOptions, detect
from runtime.detector import Detector
from runtime.images.image import Image
from runtime.streams import video_writer
from runtime.streams.open import open_source
from runtime.streams.options import StreamOptions
from runtime.streams.url import StreamError
from runtime.streams.video_file import counts_frames, frame_rate, missing_bytes
from runtime.streams.video_writer import VideoWriter, mp4_fault
from tests.processes import ROOT
from tests.runtime.cameras import json_lines, object_clip


def noise(size_hw: tuple[int, int] = (160, 192), seed: int = 0) -> Image:
    return np.random.default_rng(seed).integers(0, 255, (*size_hw, 3), dtype=np.uint8)


def noisy_clip(path: Path, frames: int = 60) -> Path:
    with VideoWriter(path, 25.0, live=False) as video:
        for i in range(frames):
            video.write(noise(seed=i), i / 25)
    return path


def bar(number: int) -> Image:
    image = np.zeros((64, 640, 3), np.uint8)
    image[:, 16 * number : 16 * number + 16] = 255
    return image


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_video_that_does_not_fit_is_an_error_with_its_name(tmp_path: Path) -> None:
    """OpenCV's writer says nothing at all."""
    with no_file_larger_than(200_000), pytest.raises(OSError, match=r"File too large: '.*/clip\.mp4'"):
        noisy_clip(tmp_path / "clip.mp4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("checked_while_it_grows", [True, False])
def test_detect_keeps_the_lines_where_the_video_does_not_fit(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked_while_it_grows: bool
) -> None:
    clip = noisy_clip(tmp_path / "clip.mp4")
    if checked_while_it_grows:
        monkeypatch.setattr(video_writer, "CHECK_EVERY_S", 0.0)
    told = r"out/clip\.mp4: File too large \(after (\d+) frames; complete up to there: .*clip\.jsonl\)"
    with no_file_larger_than(200_000), pytest.raises(DetectError, match=told) as raised:
        detect(clip, detector, DetectOptions(out=tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["clip.jsonl"]
    rows = json_lines(tmp_path / "out" / "clip.jsonl")
    frames = int(str(raised.value).partition("(after ")[2].partition(" ")[0])
    assert frames <= len(rows) and (len(rows) < 60) == checked_while_it_grows


def test_a_large_video_is_tried_once_for_what_fat_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not again and again: a recording of hours goes on."""
    tried: list[int] = []
    try_writing = video_writer._try_writing

    def counted(partial: Path, path: Path) -> None:
        tried.append(partial.stat().st_size)
        try_writing(partial, path)

    monkeypatch.setattr(video_writer, "_try_writing", counted)
    monkeypatch.setattr(video_writer, "_FAT_LARGEST", 300_000)
    monkeypatch.setattr(video_writer, "CHECK_EVERY_S", 0.0)
    noisy_clip(tmp_path / "clip.mp4")
    assert len(tried) == 1 and 300_000 - 2**16 < tried[0] < (tmp_path / "clip.mp4").stat().st_size


def test_a_probe_that_fits_in_part_does_not_fit(tmp_path: Path) -> None:
    """The first write up to a limit is short, and no error."""
    (tmp_path / "partial").write_bytes(bytes(190_000))
    with no_file_larger_than(200_000), pytest.raises(OSError, match=r"File too large: '.*/clip\.mp4'"):
        video_writer._try_writing(tmp_path / "partial", tmp_path / "clip.mp4")


def test_lines_that_do_not_fit_end_with_a_whole_one(tmp_path: Path) -> None:
    lines = detect_outputs.Lines(tmp_path / "x.jsonl")
    with no_file_larger_than(250), pytest.raises(OSError, match=r"File too large: '.*/x\.jsonl'"):
        for _ in range(10):
            lines.write({"text": "x" * 80})
    lines.close(keep=True)
    assert [line["text"] for line in json_lines(tmp_path / "x.jsonl")] == ["x" * 80] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="mounting a small disk needs root")
def test_a_full_disk_under_the_command(onnx_file: Callable[..., Path], tmp_path: Path) -> None:
    clip, full = noisy_clip(tmp_path / "clip.mp4", 120), tmp_path / "full"
    full.mkdir()
    words = [sys.executable, "-m", "runtime", "detect", clip, "--model", onnx_file(), "--out", full / "out", "--quiet"]
    inside = (
        f'mount --make-rprivate / && mount -t tmpfs -o size=256k tmpfs "{full}" && "$@"; s=$?; ls -A "{full}/out"; '
    )
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", inside + "exit $s", "x", *map(str, words)],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    if "mount" in done.stderr and "denied" in done.stderr:
        pytest.skip("this container mounts nothing")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert f"{full}/out/clip.mp4: {os.strerror(errno.ENOSPC)}" in done.stderr
    assert done.stdout.split() == ["clip.jsonl"]


@pytest.mark.parametrize("cut", [0.3, 0.99])
def test_a_video_that_lost_its_end_is_found_out(tmp_path: Path, cut: float) -> None:
    path = noisy_clip(tmp_path / "clip.mp4")
    assert mp4_fault(path, 60) == "" and mp4_fault(path, 61) == "60 of 61 pictures"
    data = path.read_bytes()
    path.write_bytes(data[: int(cut * len(data))])
    assert mp4_fault(path, 60) != ""


@pytest.mark.parametrize("size_hw", [(61, 81), (60, 81), (61, 80), (1, 1), (3, 2)])
def test_odd_sizes_lose_no_pixels(tmp_path: Path, size_hw: tuple[int, int]) -> None:
    """OpenCV's writer leaves out the last column or row."""
    image = np.full((*size_hw, 3), 40, np.uint8)
    image[:, -1], image[-1] = 220, 220
    with VideoWriter(tmp_path / "odd.mp4", 25.0, live=False) as video:
        for i in range(3):
            video.write(image, i / 25)
    reader = cv2.VideoCapture(str(tmp_path / "odd.mp4"))
    seen = reader.read()[1]
    assert seen.shape[:2] == tuple(side + side % 2 for side in size_hw)
    assert seen[size_hw[0] - 1, size_hw[1] - 1].mean() > 150


def test_every_frame_of_a_file_is_there_and_stands_as_long_as_it_did(tmp_path: Path) -> None:
    times = [*(i / 30 for i in range(30)), *(1 + i / 5 for i in range(10))]
    with VideoWriter(tmp_path / "vfr.mp4", 30.0, live=False) as video:
        for i, time_s in enumerate(times):
            video.write(bar(i), time_s)
    seen = [
        (frame.time_s, int(frame.image.mean(axis=(0, 2)).argmax()) // 16) for frame in open_source(tmp_path / "vfr.mp4")
    ]
    first: dict[int, float] = {}
    for time_s, number in seen:
        first.setdefault(number, time_s)
    assert list(first) == list(range(40))
    assert list(first.values()) == pytest.approx(times, abs=0.02)


def test_a_clock_that_jumps_fills_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_writer, "LONGEST_FILE_GAP_S", 2.0)
    with VideoWriter(tmp_path / "jump.mp4", 10.0, live=False) as video:
        for time_s in (0.0, 0.1, 95443.7, 95443.8):
            video.write(noise(), time_s)
    assert len(list(open_source(tmp_path / "jump.mp4"))) == 2 + 20 + 1


# From here on: video files as they are found
VIDEOS = Path(__file__).parent / "videos"


def times(path: Path) -> list[float]:
    return [frame.time_s for frame in open_source(path)]


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("name", ["vfr.mkv", "vfr.mp4", "offset.mkv"])
def test_an_annotated_video_keeps_its_sources_time(
    detector: Detector, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, every: int
) -> None:
    moves: list[tuple[int, int | None]] = []
    with caplog.at_level(logging.WARNING):
        options = DetectOptions(out=tmp_path, streams=StreamOptions(every=every))
        summary = detect(VIDEOS / name, detector, options, progress=lambda *step: moves.append(step))
    assert caplog.messages == [], "a whole file is called truncated"
    source, stem = times(VIDEOS / name), Path(name).stem
    assert summary.frames == -(-len(source) // every) and moves[-1] == (summary.frames, summary.frames)
    lines = json_lines(tmp_path / f"{stem}.jsonl")
    assert [line["time_s"] for line in lines] == pytest.approx(source[::every], abs=0.001)
    assert times(tmp_path / f"{stem}.mp4")[-1] == pytest.approx(source[::every][-1], abs=0.05)


def test_times_are_the_files_own() -> None:
    """The first 60 frames 1/30 s apart, the rest 1/5 s."""
    expected = [*(i / 30 for i in range(60)), *(2 + i / 5 for i in range(40))]
    for name in ("vfr.mkv", "vfr.mp4"):
        assert times(VIDEOS / name) == pytest.approx(expected, abs=0.001)


def test_the_rate_is_that_of_the_fastest_part(tmp_path: Path) -> None:
    assert frame_rate(VIDEOS / "vfr.mp4", 100 / 9.8) == pytest.approx(30, rel=0.01)
    assert frame_rate(VIDEOS / "offset.mkv", 25.0) == 25.0
    object_clip(tmp_path / "even.mp4", [0] * 150)
    assert frame_rate(tmp_path / "even.mp4", 10.0) == 10.0
    assert frame_rate(tmp_path / "not there.mp4", 12.0) == 12.0


def test_a_cut_matroska_file_is_told_by_its_own_length(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = VIDEOS / "vfr.mkv"
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[:9000])
    assert missing_bytes(whole) == 0 and missing_bytes(cut) == whole.stat().st_size - 9000
    assert not counts_frames(whole) and counts_frames(VIDEOS / "vfr.mp4")
    with caplog.at_level(logging.WARNING):
        list(open_source(cut))
    assert [m for m in caplog.messages if "bytes short of its own length; is it truncated?" in m] == caplog.messages
    assert len(caplog.messages) == 1
    for junk in (b"", b"\x1aE\xdf\xa3", b"\x1aE\xdf\xa3\x01", b"\x1aE\xdf\xa3\xff\x18S\x80g\xff", b"\0" * 40):
        cut.write_bytes(junk)
        assert missing_bytes(cut) == 0


def test_a_colon_in_a_name_is_no_protocol(detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg takes what stands before it for one, in reading and in writing."""
    monkeypatch.chdir(tmp_path)
    object_clip(tmp_path / "2026-11-27T12:00:00.mp4", [0] * 5)
    (tmp_path / "rec").mkdir()
    object_clip(tmp_path / "rec" / "file:12.mp4", [0] * 5)
    assert detect("2026-11-27T12:00:00.mp4", detector, DetectOptions(out="out")).pictures == Path(
        "out/2026-11-27T12:00:00.mp4"
    )
    assert detect("rec/file:12.mp4", detector, DetectOptions(out=".")).frames == 5
    assert len(times(tmp_path / "file:12.mp4")) == 5
    summary = detect("*.mp4", detector, DetectOptions(out="all"))
    assert [source.frames for source in summary.sources] == [5, 5]


def test_a_codec_that_opencv_lacks_is_told_with_the_way_out() -> None:
    with pytest.raises(
        StreamError, match=r"av1\.mkv: .*its codec is AV1.*pip install 'isodet\[video\]', then --decoder"
    ):
        list(open_source(VIDEOS / "av1.mkv"))
