"""Video files as they are found: uneven rates, times that begin late, colons in names, codecs that OpenCV lacks."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.commands.detect_run import DetectOptions, detect
from runtime.detector import Detector
from runtime.streams.open import open_source
from runtime.streams.url import StreamError
from runtime.streams.video_file import counts_frames, frame_rate, missing_bytes
from tests.runtime.test_detect_sources import clip

VIDEOS = Path(__file__).parent / "videos"


@pytest.fixture
def detector(onnx_file: Callable[..., Path]) -> Detector:
    return Detector(onnx_file(), device="cpu", threads=1)


def times(path: Path) -> list[float]:
    return [frame.time_s for frame in open_source(path)]


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("name", ["vfr.mkv", "vfr.mp4", "offset.mkv"])
def test_an_annotated_video_keeps_its_sources_time(
    detector: Detector, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, every: int
) -> None:
    from runtime.streams.options import StreamOptions

    moves: list[tuple[int, int | None]] = []
    with caplog.at_level(logging.WARNING):
        summary = detect(
            VIDEOS / name,
            detector,
            DetectOptions(out=tmp_path, streams=StreamOptions(every=every)),
            progress=lambda done, total: moves.append((done, total)),
        )
    assert caplog.messages == [], "a whole file is called truncated"
    source, stem = times(VIDEOS / name), Path(name).stem
    assert summary.frames == -(-len(source) // every) and moves[-1] == (summary.frames, summary.frames)
    lines = [json.loads(line) for line in (tmp_path / f"{stem}.jsonl").read_text().splitlines()]
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
    clip(tmp_path / "even.mp4", [0] * 150)
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
    clip(tmp_path / "2026-11-27T12:00:00.mp4", [0] * 5)
    (tmp_path / "rec").mkdir()
    clip(tmp_path / "rec" / "file:12.mp4", [0] * 5)
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
