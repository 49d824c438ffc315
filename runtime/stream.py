"""Where frames come from: a picture, a folder of pictures, a video file, a webcam or a URL."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from runtime.image import IMAGE_SUFFIXES, Image, ImageError, read_image

_log = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv")


class StreamError(ValueError):
    """A source that cannot be opened, or that gives no frame; the message names it and what was expected."""


@dataclass(frozen=True, eq=False)
class SourceFrame:
    """One frame of a source."""

    image: Image
    """uint8 [H, W, 3] BGR"""
    index: int
    """0, 1, ... in the source; a broken picture of a folder keeps its number."""
    time_s: float
    """Seconds since the start: of the video, or on the clock for a webcam or URL; 0 for pictures."""
    path: Path | None
    """Of the picture; None for videos and cameras."""


@dataclass(frozen=True)
class Source:
    """An opened source; iterate over its frames, once."""

    name: str
    """Of the file, folder, webcam or host; fit for a file name."""
    kind: Literal["picture", "folder", "video", "webcam", "url"]
    count: int | None
    """Frames, where that is known; a video's own count may be off."""
    fps: float
    """Frames per second; 0 for pictures."""
    frames: Callable[[], Iterator[SourceFrame]]

    @property
    def is_video(self) -> bool:
        """Whether the frames are of one moving picture."""
        return self.kind in ("video", "webcam", "url")

    def __iter__(self) -> Iterator[SourceFrame]:
        return self.frames()


def open_source(source: str | int | PathLike[str], on_broken: Callable[[ImageError], None] | None = None) -> Source:
    """Open `source`: a picture, a folder, a video file, a webcam number (0, "0") or a URL (rtsp://, http://).

    A broken picture in a folder is handed to `on_broken` and left out; without `on_broken` it is logged as
    a warning. Raises `StreamError` for a source that cannot be opened, `ImageError` for a broken picture.
    """
    text = fspath(source) if isinstance(source, (str, PathLike)) else str(source)
    if isinstance(source, int) or (text.isdecimal() and not Path(text).exists()):
        return _open_capture(int(text), f"webcam{int(text)}", "webcam")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        host = re.split(r"[/?#]", text.split("://", 1)[1])[0].rpartition("@")[2]  # no passwords in file names
        return _open_capture(text, re.sub(r"[^A-Za-z0-9.-]+", "_", host) or "stream", "url")
    path = Path(text)
    if not path.exists():
        raise StreamError(f"{text}: no such file or folder (expected a picture, folder, video, webcam number or URL)")
    if path.is_dir():
        return _open_folder(path, on_broken or _warn)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        image = read_image(path)
        return Source(path.stem, "picture", 1, 0.0, lambda: iter([SourceFrame(image, 0, 0.0, path)]))
    return _open_capture(str(path), path.stem, "video")


def _open_folder(folder: Path, on_broken: Callable[[ImageError], None]) -> Source:
    paths = sorted((p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()), key=_natural)
    if not paths:
        raise StreamError(f"{folder}: no pictures in this folder (expected {', '.join(IMAGE_SUFFIXES)})")

    def frames() -> Iterator[SourceFrame]:
        for index, path in enumerate(paths):
            try:
                image = read_image(path)
            except ImageError as error:
                on_broken(error)
                continue
            yield SourceFrame(image, index, 0.0, path)

    return Source(folder.resolve().name or "pictures", "folder", len(paths), 0.0, frames)


def _open_capture(target: str | int, name: str, kind: Literal["video", "webcam", "url"]) -> Source:
    shown = f"webcam {target}" if kind == "webcam" else str(target)
    advice = {
        "video": f"is it a video ({', '.join(VIDEO_SUFFIXES)})? OpenCV may lack its codec",
        "webcam": "is it plugged in, free, and readable by this user?",
        "url": "is the address right and the camera reachable?",
    }[kind]
    capture = cv2.VideoCapture(target)
    if not capture.isOpened():
        raise StreamError(f"{shown}: cannot be opened; {advice}")
    fps = capture.get(cv2.CAP_PROP_FPS)
    if not math.isfinite(fps) or not 0 < fps <= 1000:  # cameras may report 0, or their clock's 90000
        fps = 25.0
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if kind == "video" else 0

    def frames() -> Iterator[SourceFrame]:
        started, index = time.perf_counter(), 0
        try:
            while True:
                read, image = capture.read()
                if not read or image is None:
                    break
                seconds = index / fps if kind == "video" else time.perf_counter() - started
                yield SourceFrame(np.asarray(image, np.uint8), index, seconds, None)
                index += 1
        finally:
            capture.release()
        if index == 0:
            raise StreamError(f"{shown}: opened, but gives no frame; {advice}")
        if index < 0.95 * count:
            _log.warning("%s: ended after %d of the %d frames it announces; is it truncated?", shown, index, count)

    return Source(name, kind, count if count > 0 else None, fps, frames)


def _warn(error: ImageError) -> None:
    _log.warning("%s (skipped)", error)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key under which frame10 comes after frame9."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in parts]
