"""A source of frames that is open, and the one that a decoder is."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Literal

from runtime.images.image import Image
from runtime.streams.capture import Capture, DecoderName, StreamError
from runtime.streams.video_file import truncation, undecoded

_log = logging.getLogger("runtime.streams.open")

Kind = Literal["picture", "folder", "video", "webcam", "url"]
"""folder stands for a glob of pictures, too."""

Origin = str | int | PathLike[str]
"""What a user writes for a source: a path, a glob, a webcam's number or a URL."""


@dataclass(frozen=True, eq=False)
class SourceFrame:
    """One frame of a source."""

    image: Image
    """uint8 [H, W, 3] BGR"""
    index: int
    """0, 1, ... in the source. What was left out keeps its number: broken pictures, skipped and dropped frames."""
    time_s: float
    """Seconds since the start: of the video in its own time, of a camera on the clock; 0 for pictures."""
    path: Path | None
    """Of the picture; None for videos and cameras."""
    source: int = 0
    """Which of the sources, where there are several (`runtime.Streams`)."""
    clock_s: float = 0.0
    """When it was read: seconds since 1970, as `time.time()`."""


def _nothing() -> None:
    return None


def _keep(image: Image) -> None:
    return None


@dataclass(frozen=True)
class Source:
    """An opened source; iterate over its frames, once."""

    name: str
    """Of the file, folder, webcam or host; fit for a file name."""
    kind: Kind
    count: int | None
    """Frames, where that is known; a video's own count may be off."""
    fps: float
    """Frames per second; 0 for pictures."""
    frames: Callable[[], Iterator[SourceFrame]]
    live: bool = False
    """Whether frames come when they come and have no end: a webcam, or a URL that announces no length."""
    origin: Origin | None = None
    """What to open to have it again."""
    root: Path | None = None
    """The folder that all pictures of a folder or glob lie in, at whatever depth."""
    recycle: Callable[[Image], None] = _keep
    """Give back the array of a frame that nobody looks at any more."""
    close: Callable[[], None] = _nothing
    """Let go a source whose frames were never asked for; iterating to the end does it, too."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set from another thread, it ends the wait for a frame of a webcam or URL, with a `StreamError`."""
    opened_s: float = field(default_factory=time.monotonic)
    """When it was opened, of `time.monotonic`."""

    @property
    def is_video(self) -> bool:
        """Whether the frames are of one moving picture."""
        return self.kind in ("video", "webcam", "url")

    def __iter__(self) -> Iterator[SourceFrame]:
        return self.frames()


def of_capture(
    capture: Capture, name: str, kind: Kind, shown: str, advice: str = "",
    every: int = 1, origin: Origin | None = None, cancelled: threading.Event | None = None,
    file: Path | None = None, decoder: DecoderName = "opencv",
) -> Source:  # fmt: skip
    """The source that `capture` is. `shown` names it in messages, `advice` says what to look at; `file` is the video's,
    where it is one.
    """
    live = kind == "webcam" or (kind == "url" and capture.count is None)

    def frames() -> Iterator[SourceFrame]:
        started, index, last = time.perf_counter(), 0, -every / capture.fps
        try:
            while True:
                image = capture.read()
                if image is None:
                    break
                now, position = time.perf_counter() - started, capture.position_s()
                # Some files have no timestamps, some cameras' clocks jump; time never stands still here.
                last = (
                    now
                    if live
                    else position
                    if position is not None and position > last
                    else last + every / capture.fps
                )
                yield SourceFrame(image, index, last, None, clock_s=time.time())
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


def numbered(frame: SourceFrame, source: int, index: int, time_s: float) -> SourceFrame:
    """`frame` as one of several sources', with its number and time counted over reconnections."""
    return replace(frame, source=source, index=index, time_s=time_s)
