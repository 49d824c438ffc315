"""What a video file says of itself, read without decoding it: whether it is whole, and how fast its frames come."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import cv2

_PACKETS = 2000
"""As many packets are looked at for the rate of a video whose frames do not come evenly."""
_EVEN = 100
"""As many, for whether they do."""
_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067
_ESTIMATES = (b"\x1aE\xdf\xa3", b"G", b"FLV", b"\0\0\x01\xba", b"0&\xb2u", b"OggS")
"""How files begin whose number of frames FFmpeg computes from their length: Matroska and WebM, transport stream, Flash,
MPEG program stream, ASF, Ogg."""


def counts_frames(path: Path) -> bool:
    """Whether the number of frames that a decoder gives for the file at `path` is written in it, as in MP4 and AVI."""
    with path.open("rb") as file:
        return not file.read(4).startswith(_ESTIMATES)


def missing_bytes(path: Path) -> int:
    """How many bytes the Matroska or WebM file at `path` is shorter than it says; 0 for files of other kinds, and for
    recordings that never wrote their length.
    """
    with path.open("rb") as file:
        element = _element(file)
        if element is None or element[0] != _EBML or element[1] is None:
            return 0
        file.seek(element[1], 1)
        element = _element(file)
        if element is None or element[0] != _SEGMENT or element[1] is None:
            return 0
        return max(0, file.tell() + element[1] - path.stat().st_size)


def truncation(frames: int, announced: int | None, path: Path | None) -> str:
    """Warning for a video of which `frames` could be read; '' where that may be all. `path`: its file, if it is one."""
    missing = missing_bytes(path) if path is not None else 0
    if missing:
        return f"ended after {frames} frames, {missing} bytes short of its own length; is it truncated?"
    if announced is not None and frames < 0.95 * announced and (path is None or counts_frames(path)):
        return f"ended after {frames} of the {announced} frames it announces; is it truncated?"
    return ""


def _element(file: BinaryIO) -> tuple[int, int | None] | None:
    """The identifier and length of the EBML element that begins here; a length of None is unknown."""
    first = file.read(1)
    width = 9 - first[0].bit_length() if first and first[0] else 9
    rest = file.read(width - 1)
    start = file.read(1)
    if width > 4 or len(rest) < width - 1 or not start or not start[0]:
        return None
    length = 9 - start[0].bit_length()
    tail = file.read(length - 1)
    if len(tail) < length - 1:
        return None
    value = int.from_bytes(start + tail, "big") & ((1 << (7 * length)) - 1)
    return int.from_bytes(first + rest, "big"), None if value == (1 << (7 * length)) - 1 else value


def frame_rate(path: Path, usual: float) -> float:
    """Frames per second of the fastest part of the video at `path`, at least `usual`, which its decoder gives.

    A phone's video has 30 frames a second by day and 5 in the dark, and announces the mean. Packets are read, not
    decoded; as many as show that they come evenly, or the first 2000.
    """
    reader = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
    times: list[float] = []
    try:
        while len(times) < _PACKETS and reader.isOpened() and reader.grab():
            times.append(reader.get(cv2.CAP_PROP_POS_MSEC) / 1000)
            if len(times) == _EVEN and all(abs(gap * usual - 1) < 0.2 for gap in _gaps(times)):
                return usual
    finally:
        reader.release()
    gaps = _gaps(times)
    if len(gaps) < 10:
        return usual
    short = gaps[len(gaps) // 20]  # the shortest one may be a clock's mistake
    alike = [gap for gap in gaps if gap <= 1.1 * short and gap >= 0.9 * short]
    fastest = len(alike) / sum(alike)
    return fastest if 1.2 * usual < fastest <= 240 else usual


def _gaps(times: list[float]) -> list[float]:
    """Seconds between frames, the shortest first. Packets come in the order of decoding, not of showing."""
    shown = sorted(set(times))
    return sorted(later - earlier for earlier, later in zip(shown, shown[1:], strict=False))


def undecoded(path: Path, decoder: str) -> str:
    """Advice for a video that holds packets, of which `decoder` makes no frame; '' where that is not the reason."""
    if decoder != "opencv":
        return ""
    reader = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
    try:
        if not (reader.isOpened() and reader.grab()):
            return ""
        code = int(reader.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF
    finally:
        reader.release()
    name = code.to_bytes(4, "little").decode("latin-1").strip("\0 ")
    codec = f" (its codec is {'AV1' if name.lower() == 'av01' else name})" if name.isprintable() and name else ""
    return (
        f"this OpenCV has no decoder for what it holds{codec}; take the decoder pyav: pip install 'isodet[video]', "
        'then --decoder pyav, or StreamOptions(decoder="pyav")'
    )
