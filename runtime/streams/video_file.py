"""Facts about a video file, read without decoding it: whether it is complete, its frame rate, its codec."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import cv2

_PACKETS = 2000
"""The number of packets read for the rate of a video with uneven frames."""
_EVEN = 100
"""The number of packets read to see whether frames come evenly."""
_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067
_ESTIMATES = (b"\x1aE\xdf\xa3", b"G", b"FLV", b"\0\0\x01\xba", b"0&\xb2u", b"OggS")
"""The first bytes of files whose number of frames FFmpeg estimates from their length: Matroska and WebM, transport
stream, Flash, MPEG program stream, ASF, Ogg."""


@contextmanager
def opened_video(path: str | Path, packets: bool = False) -> Iterator[cv2.VideoCapture]:
    """OpenCV's reader of a video file, released at the end. `packets`: FFmpeg's, which reads and does not decode."""
    backend, settings = (cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1]) if packets else (cv2.CAP_ANY, [])
    reader = cv2.VideoCapture(str(Path(path).absolute()), backend, settings)
    try:
        yield reader
    finally:
        reader.release()


def counts_frames(path: Path) -> bool:
    """Whether the file at `path` states its number of frames, as MP4 and AVI do; otherwise decoders estimate it."""
    with path.open("rb") as file:
        return not file.read(4).startswith(_ESTIMATES)


def missing_bytes(path: Path) -> int:
    """The bytes that are missing at the end of the Matroska or WebM file at `path`, by the length that it states.

    0 for other kinds of files, and for recordings that do not state their length.
    """
    with path.open("rb") as file:
        end = 0
        for expected in (_EBML, _SEGMENT):
            file.seek(end)
            identifier, length = _element(file)
            if identifier != expected or length is None:
                return 0
            end = file.tell() + length
        return max(0, end - path.stat().st_size)


def truncation(frames: int, announced: int | None, path: Path | None) -> str:
    """A warning for a video that ended too early, after `frames` frames; '' for one that may be complete.

    `announced`: the number of frames that it announces, if it does. `path`: its file, if it is one.
    """
    missing = missing_bytes(path) if path is not None else 0
    if missing:
        return f"ended after {frames} frames, {missing} bytes short of its own length; is it truncated?"
    if announced is not None and frames < 0.95 * announced and (path is None or counts_frames(path)):
        return f"ended after {frames} of the {announced} frames it announces; is it truncated?"
    return ""


def _element(file: BinaryIO) -> tuple[int, int | None]:
    """Identifier and length of the EBML element that begins here: length None for unknown, identifier 0 for none."""
    first = file.read(1)
    width = 9 - first[0].bit_length() if first and first[0] else 9
    rest = file.read(width - 1)
    start = file.read(1)
    if width > 4 or len(rest) < width - 1 or not start or not start[0]:
        return 0, None
    length = 9 - start[0].bit_length()
    tail = file.read(length - 1)
    if len(tail) < length - 1:
        return 0, None
    value = int.from_bytes(start + tail, "big") & ((1 << (7 * length)) - 1)
    return int.from_bytes(first + rest, "big"), None if value == (1 << (7 * length)) - 1 else value


def frame_rate(path: Path, usual: float) -> float:
    """Frames per second in the fastest part of the video at `path`; at least `usual`, the rate that its decoder gives.

    A phone's video has 30 frames a second by day and 5 in the dark, and announces the mean. This reads packets without
    decoding them: 100 where frames come evenly, else the first 2000.
    """
    times: list[float] = []
    with opened_video(path, packets=True) as video:
        while len(times) < _PACKETS and video.isOpened() and video.grab():
            times.append(video.get(cv2.CAP_PROP_POS_MSEC) / 1000)
            if len(times) == _EVEN and all(abs(gap * usual - 1) < 0.2 for gap in _gaps(times)):
                return usual
    gaps = _gaps(times)
    if len(gaps) < 10:
        return usual
    short = gaps[len(gaps) // 20]  # not the shortest, which may be an error of the clock
    alike = [gap for gap in gaps if 0.9 * short <= gap <= 1.1 * short]
    fastest = len(alike) / sum(alike)
    return fastest if 1.2 * usual < fastest <= 240 else usual


def _gaps(times: list[float]) -> list[float]:
    """Seconds between frames, sorted. Packets come in the order of decoding, so `times` are sorted first."""
    shown = sorted(set(times))
    return sorted(later - earlier for earlier, later in zip(shown, shown[1:], strict=False))


def undecoded(path: Path, decoder: str) -> str:
    """Advice for a video that has packets which `decoder` cannot decode; '' for any other trouble."""
    if decoder != "opencv":
        return ""
    with opened_video(path, packets=True) as video:
        if not (video.isOpened() and video.grab()):
            return ""
        code = int(video.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF
    name = code.to_bytes(4, "little").decode("latin-1").strip("\0 ")
    codec = f" (its codec is {'AV1' if name.lower() == 'av01' else name})" if name.isprintable() and name else ""
    return (
        f"this OpenCV has no decoder for what it holds{codec}; take the decoder pyav: pip install 'isodet[video]', "
        'then --decoder pyav, or StreamOptions(decoder="pyav")'
    )
