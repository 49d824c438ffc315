"""Writing an annotated video, which appears under its name when it is complete, and lasts as long as its source."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import cv2
import numpy as np

from isodet.errors import IsodetError
from runtime.files.write import partial_path
from runtime.images.image import Image
from runtime.streams.video_file import opened_video

LONGEST_GAP_S = 1.0
"""A longer pause of a live source is cut to this in its video."""
LONGEST_FILE_GAP_S = 600.0
"""A longer pause between two frames of a file is cut to this, or a clock that jumps would fill the disk."""
CHECK_EVERY_S = 1.0
_LITTLE = 8 << 20
"""With fewer free bytes on the disk, a test file shows whether writing still works."""
_PROBE = 1 << 16
_FAT_LARGEST = (1 << 32) - 1
"""Bytes of the largest file on FAT, as memory cards have it."""


class VideoError(IsodetError, RuntimeError):
    """A video that cannot be started; the message says what to do."""


class VideoWriter(AbstractContextManager["VideoWriter"]):
    """An MP4 that appears under its name when it is complete. The first frame decides its size. Sides must be even, so
    the last column or row of an odd side is written twice.

    A frame is repeated until the next one is due, so that the video shows the times of its source. A frame of a live
    source that comes too soon is left out. Of a file (`live` False) every frame is written, so `fps` should fit its
    fastest part (`runtime.streams.video_file.frame_rate`).

    OpenCV reports no failed writes. So the writer checks the disk while the video grows, and reads the finished file:
    leaving the `with` raises OSError, which names the video and the reason, and leaves no file behind.
    """

    def __init__(self, path: Path, fps: float, live: bool) -> None:
        self.path = path
        self._partial = Path(os.path.abspath(partial_path(path)))  # before a colon, FFmpeg looks for a protocol
        self._fps, self._live = fps, live
        self._size_wh = self._odd_wh = (0, 0)
        self._writer: cv2.VideoWriter | None = None
        self._last: Image | None = None
        self._last_s = self._clock = 0.0
        self._written = 0
        self._checked = time.monotonic()
        self._failed = self._beyond_fat = False

    def write(self, image: Image, time_s: float) -> None:
        """Add the frame (uint8 [H, W, 3] BGR) of that time. Raises OSError where the disk is full."""
        height, width = image.shape[:2]
        if self._writer is None:
            self._begin((width, height))
            self._last_s = time_s
        if (width, height) != self._size_wh:  # a camera may change its size, a video file cannot
            image = cv2.resize(image, self._size_wh).astype(image.dtype, copy=False)
        due = 0
        if self._last is not None:
            gap = min(max(time_s - self._last_s, 0.0), LONGEST_GAP_S if self._live else LONGEST_FILE_GAP_S)
            self._clock += gap
            due = round(self._clock * self._fps)
            for _ in range(due - self._written):
                self._write(self._last)
        if not self._live or self._written <= due:  # else the camera is faster than its video
            self._write(image)
        self._last, self._last_s = image, time_s

    def _begin(self, size_wh: tuple[int, int]) -> None:
        width, height = self._size_wh = size_wh
        self._odd_wh = (width % 2, height % 2)
        even = (width + width % 2, height + height % 2)
        self._partial.parent.mkdir(parents=True, exist_ok=True)
        self._writer = cv2.VideoWriter(str(self._partial), cv2.VideoWriter.fourcc(*"mp4v"), self._fps, even)
        if not self._writer.isOpened():
            self._writer = None
            self._partial.unlink(missing_ok=True)
            _try_writing(self._partial, self.path)
            reason = f"this OpenCV cannot write mp4v video of {width}x{height} pixels"
            raise VideoError.at(self.path, f"{reason}; use --no-save with --json")

    def _write(self, image: Image) -> None:
        assert self._writer is not None
        if any(self._odd_wh):  # OpenCV would cut off the last column or row
            right, bottom = self._odd_wh
            image = np.asarray(cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_REPLICATE), np.uint8)
        self._writer.write(image)
        self._written += 1
        now = time.monotonic()
        if now - self._checked >= CHECK_EVERY_S:
            self._checked = now
            size = self._partial.stat().st_size if self._partial.is_file() else 0
            # Checked once: on a disk without sparse files, each test writes as much as the video.
            passes_fat = size + _PROBE > _FAT_LARGEST and not self._beyond_fat
            scarce = shutil.disk_usage(self._partial.parent).free < _LITTLE
            if scarce or passes_fat or size + _PROBE >= _largest():
                self._failed = True  # unless the test succeeds
                _try_writing(self._partial, self.path)
                self._failed = False
                self._beyond_fat |= passes_fat

    def close(self, keep: bool = True) -> None:
        """Finish the video. Without `keep`, or after a failed write, delete it. A second call does nothing.

        Raises OSError where it was not written completely.
        """
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        try:
            writer.release()
            if keep and not self._failed:
                fault = mp4_fault(self._partial, self._written)
                if fault:
                    _try_writing(self._partial, self.path)
                    raise OSError(errno.EIO, f"the video was not written whole ({fault})", str(self.path))
                os.replace(self._partial, self.path)
        finally:
            self._partial.unlink(missing_ok=True)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(keep=kind is None)


def mp4_fault(path: Path, frames: int) -> str:
    """The fault of the MP4 at `path`, which should hold `frames` pictures; '' where it has none."""
    if not path.is_file():
        return "there is no file"
    size, position, kinds = path.stat().st_size, 0, set()
    with path.open("rb") as file:
        while position < size:
            file.seek(position)
            head = file.read(16)
            if len(head) < 8:
                return "it ends within a box"
            length, kind = struct.unpack(">I4s", head[:8])
            if length == 1 and len(head) == 16:
                length = struct.unpack(">Q", head[8:])[0]
            if length < 8 or position + length > size:
                return f"its box {kind.decode('latin-1')!r} does not fit"
            kinds.add(kind)
            position += length
    if not {b"moov", b"mdat"} <= kinds:
        return "it has no index" if b"moov" not in kinds else "it has no pictures"
    with opened_video(path) as video:
        count = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) if video.isOpened() else 0
    return "" if count == frames else f"{count} of {frames} pictures"


def _largest() -> float:
    """Bytes of the largest file that this process may write."""
    if sys.platform == "win32":
        return float("inf")
    import resource

    soft = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return float("inf") if soft == resource.RLIM_INFINITY else soft


def _try_writing(partial: Path, path: Path) -> None:
    """Write a test file beside `partial`, a bit larger than it. Raises the OSError that this meets, naming `path`."""
    probe = partial.with_name(f"{partial.name[:40]}.probe")
    size = partial.stat().st_size if partial.is_file() else 0
    try:
        with probe.open("wb", buffering=0) as file:
            for place in (0, size) if size else (0,):
                file.seek(place)  # leaves a hole, which takes no space on most disks
                left = b"\0" * _PROBE
                while left:  # at a limit, one write stops there, and only the next one raises
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        probe.unlink(missing_ok=True)
