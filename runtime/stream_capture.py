"""Decoders of videos and cameras: OpenCV, and PyAV and NVIDIA's as extras. All give uint8 BGR frames, one by one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, Literal, Protocol

import cv2
import numpy as np

from runtime.image import Image

DecoderName = Literal["opencv", "pyav", "nvidia"]
BAD_PACKETS = 50
"""As many in a row that cannot be decoded end a stream."""

DECODERS: tuple[DecoderName, ...] = ("opencv", "pyav", "nvidia")


class StreamError(ValueError):
    """A source that cannot be opened, that gives no frame, or that went away; the message names it."""


class Capture(Protocol):
    """An opened video or camera."""

    fps: float
    """Frames per second, 25 where the source does not say."""
    count: int | None
    """Frames as announced, None where nothing is: a live source."""

    def read(self) -> Image | None:
        """The next frame, uint8 [H, W, 3] BGR, or None at the end. The array is the caller's."""
        ...

    def skip(self) -> bool:
        """Pass over a frame without making a picture of it; False at the end."""
        ...

    def position_s(self) -> float | None:
        """Of the frame read last, in the source's own time; None where it has none."""
        ...

    def recycle(self, image: Image) -> None:
        """Take back an array of `read` that nobody looks at any more, to read a later frame into."""
        ...

    def close(self) -> None:
        """Let the device, file or connection go."""
        ...


def open_capture(target: str | int, shown: str, advice: str, decoder: DecoderName, timeout_s: float) -> Capture:
    """Open a file, URL or webcam number. `timeout_s` bounds connecting, and waiting for a frame, of a URL.

    `shown` and `advice` are for the message of the `StreamError` that is raised when it cannot be opened.
    """
    if decoder == "pyav":
        return PyAvCapture(target, shown, advice, timeout_s)
    if decoder == "nvidia":
        from runtime.stream_nvidia import NvidiaCapture

        return NvidiaCapture(target, shown, advice)
    return OpenCvCapture(target, shown, advice, timeout_s)


def without_password(url: str) -> str:
    """`url` as it may be shown and written down. In doubt too much is left out: passwords may have @ and / in them."""
    url = re.sub(r"(://[^/@:]*):.*@", r"\1:...@", url)
    return re.sub(r"(?i)((?:pass|password|passwd|pwd|token|secret)=)[^&#/\s]*", r"\1...", url)


class OpenCvCapture:
    """`cv2.VideoCapture`. It turns frames as the file's rotation says."""

    def __init__(self, target: str | int, shown: str, advice: str, timeout_s: float) -> None:
        self._capture = _opencv(target, timeout_s)
        if not self._capture.isOpened():
            raise StreamError(f"{shown}: cannot be opened; {advice}")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and 0 < fps <= 1000 else 25.0  # cameras may report 0, or a clock's 90000
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)  # far below zero where FFmpeg knows no length
        self.count = int(count) if math.isfinite(count) and count > 0 else None
        self._spare: Image | None = None

    def read(self) -> Image | None:
        spare, self._spare = self._spare, None
        read, image = self._capture.read() if spare is None else self._capture.read(spare)
        return np.asarray(image, np.uint8) if read and image is not None else None

    def skip(self) -> bool:
        return self._capture.grab()

    def position_s(self) -> float | None:
        position = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        return position if math.isfinite(position) and position >= 0 else None

    def recycle(self, image: Image) -> None:
        self._spare = image

    def close(self) -> None:
        self._capture.release()


def _opencv(target: str | int, timeout_s: float) -> cv2.VideoCapture:
    if isinstance(target, str) and "://" in target and cv2.CAP_FFMPEG in cv2.videoio_registry.getBackends():
        limit = max(1, round(timeout_s * 1000))  # OpenCV's own limits are 30 s
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit, cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit]
        return cv2.VideoCapture(target, cv2.CAP_FFMPEG, limits)
    return cv2.VideoCapture(target)


class PyAvCapture:
    """FFmpeg through PyAV (the extra `video`): the stream's own timestamps, and its sizes where they change."""

    def __init__(self, target: str | int, shown: str, advice: str, timeout_s: float) -> None:
        try:
            import av
        except ModuleNotFoundError as error:
            raise StreamError(
                f"{shown}: the decoder pyav needs the package {error.name!r}: pip install 'isodet[video]', "
                f"or take the decoder opencv"
            ) from None
        if isinstance(target, int):
            raise StreamError(f"{shown}: webcams are read by the decoder opencv; pyav reads files and URLs")
        self._errors: tuple[type[Exception], ...] = (av.error.FFmpegError,)
        self._damage: type[Exception] = av.error.InvalidDataError
        options = {"rtsp_transport": "tcp"} if target.startswith("rtsp") else {}
        timeout = (timeout_s, timeout_s) if "://" in target else None
        try:
            self._container = av.open(target, options=options, timeout=timeout)
        except (*self._errors, OSError, ValueError) as error:
            raise StreamError(f"{shown}: cannot be opened ({_reason(error)}); {advice}") from None
        if not self._container.streams.video:
            self._container.close()
            raise StreamError(f"{shown}: holds no video; {advice}")
        stream = self._container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = stream.average_rate
        self.fps = float(rate) if rate and 0 < rate <= 1000 else 25.0
        length = self._container.duration
        known = stream.frames or (round(length / av.time_base * self.fps) if length and length > 0 else 0)
        self.count = known if known > 0 else None
        self._shown = shown
        self._start = float(stream.start_time * stream.time_base) if stream.start_time and stream.time_base else 0.0
        self._frames = self._decode(stream)
        self._position: float | None = None

    def _decode(self, stream: Any) -> Iterator[Any]:
        bad = 0
        for packet in self._container.demux(stream):
            try:
                frames = packet.decode()
            except self._damage:  # one lost packet is no reason to end, as for OpenCV; nothing but damage is
                bad += 1
                if bad > BAD_PACKETS:
                    raise
                continue
            bad = 0 if frames else bad
            yield from frames

    def _next(self) -> Any:
        try:
            frame = next(self._frames, None)
        except self._errors as error:
            raise StreamError(f"{self._shown}: cannot be decoded any further ({_reason(error)})") from None
        self._position = None if frame is None or frame.time is None else frame.time - self._start
        return frame

    def read(self) -> Image | None:
        frame = self._next()
        if frame is None:
            return None
        image = frame.to_ndarray(format="bgr24")
        turns = round(frame.rotation / 90) % 4  # counter-clockwise, as in numpy
        return np.ascontiguousarray(np.rot90(image, turns)) if turns else image

    def skip(self) -> bool:
        return self._next() is not None

    def position_s(self) -> float | None:
        return self._position

    def recycle(self, image: Image) -> None:
        """PyAV makes an array for every frame; there is nothing to reuse."""

    def close(self) -> None:
        self._container.close()


def _reason(error: Exception) -> str:
    return without_password(getattr(error, "strerror", None) or str(error))
