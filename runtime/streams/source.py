"""An opened source of frames, and how to make one from a decoder."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Literal

from runtime.images.image import Image
from runtime.streams.capture import Capture, DecoderName, StreamError
from runtime.streams.video_file import truncation, undecoded

_log = logging.getLogger("runtime.streams.open")

Kind = Literal["picture", "folder", "video", "webcam", "url"]
"""folder: also a glob of pictures."""

Origin = str | int | PathLike[str]
"""A source as users write it: a path, a glob, a webcam's number or a URL."""


@dataclass(frozen=True, eq=False)
class SourceFrame:
    """One frame of a source."""

    image: Image
    """uint8 [H, W, 3] BGR"""
    index: int
    """0, 1, ... in the source. Broken pictures and skipped and dropped frames count, too."""
    time_s: float
    """Seconds since the start: of the video in its own time, of a camera on the clock; 0 for pictures."""
    path: Path | None
    """The picture's file; None for videos and cameras."""
    source: int = 0
    """The number of the source, where there are several (`runtime.Streams`)."""
    clock_s: float = 0.0
    """When it was read: seconds since 1970, as `time.time()`."""


@dataclass(frozen=True)
class Source:
    """An opened source. Iterate over its frames once."""

    name: str
    """The name of the file, folder, webcam or host; usable as a file name."""
    kind: Kind
    count: int | None
    """The number of frames, where it is known; a video may announce a wrong one."""
    fps: float
    """Frames per second; 0 for pictures."""
    frames: Callable[[], Iterator[SourceFrame]]
    live: bool = False
    """Whether it sends frames in its own time and without an end: a webcam, or a URL that announces no length."""
    origin: Origin | None = None
    """To open the source again."""
    root: Path | None = None
    """The folder that all pictures of a folder or glob lie in, at any depth."""
    recycle: Callable[[Image], None] = lambda image: None
    """Give back the array of a frame that is not needed any more."""
    close: Callable[[], None] = lambda: None
    """Close a source without reading its frames; iterating to the end also closes it."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    """When another thread sets it, the wait for a frame of a webcam or URL ends with a `StreamError`."""
    opened_s: float = field(default_factory=time.monotonic)
    """When it was opened, by `time.monotonic`."""

    @property
    def is_video(self) -> bool:
        """Whether the frames form a video, and not separate pictures."""
        return self.kind in ("video", "webcam", "url")

    def __iter__(self) -> Iterator[SourceFrame]:
        return self.frames()


def of_capture(
    capture: Capture, name: str, kind: Kind, shown: str, advice: str = "",
    every: int = 1, origin: Origin | None = None, cancelled: threading.Event | None = None,
    decoder: DecoderName = "opencv",
) -> Source:  # fmt: skip
    """A source that reads from `capture`. Messages name it `shown`, and give `advice` where it has no frame."""
    live = kind == "webcam" or (kind == "url" and capture.count is None)
    file = Path(str(origin)).absolute() if kind == "video" and origin is not None else None

    def frames() -> Iterator[SourceFrame]:
        started, index, time_s = time.perf_counter(), 0, -every / capture.fps
        try:
            while True:
                image = capture.read()
                if image is None:
                    break
                if live:
                    time_s = time.perf_counter() - started
                else:  # some files have no timestamps, in others they jump; here, time always moves on
                    position = capture.position_s()
                    counted = time_s + every / capture.fps
                    time_s = position if position is not None and position > time_s else counted
                yield SourceFrame(image, index, time_s, None, clock_s=time.time())
                index += 1
                for _ in range(every - 1):
                    if not capture.skip():
                        break
                    index += 1
        finally:
            capture.close()
        if index == 0:
            codec = undecoded(file, decoder) if file is not None else ""
            raise StreamError(f"{shown}: opened, but gives no frame; {codec or advice}")
        cut = "" if live else truncation(index, capture.count, file)
        if cut:
            _log.warning("%s: %s", shown, cut)

    count = -(-capture.count // every) if capture.count is not None and not live else None
    return Source(
        name, kind, count, capture.fps / every, frames, live, origin, recycle=capture.recycle, close=capture.close,
        cancelled=cancelled or threading.Event(),
    )  # fmt: skip
