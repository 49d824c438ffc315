"""Decoders of videos and cameras: OpenCV, and as extras PyAV and NVIDIA's. All give uint8 BGR frames, one by one."""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal, get_args

import cv2
import numpy as np

from runtime.images.image import Image
from runtime.streams.url import RefusedError as RefusedError
from runtime.streams.url import StreamError, cannot_open, is_url, opencv_url, url_options, without_password
from runtime.streams.video_file import opened_video

DecoderName = Literal["opencv", "pyav", "nvidia"]
DECODERS: tuple[DecoderName, ...] = get_args(DecoderName)
BAD_PACKETS = 50
"""More packets in a row that cannot be decoded end a stream."""
NVIDIA_AHEAD = 8
"""The number of frames that the thread of NVIDIA's decoder decodes ahead."""


class Capture(ABC):
    """An opened video or camera."""

    fps: float
    """Frames per second; 25 where the source gives no plausible rate."""
    count: int | None
    """The number of frames that the source announces; None for a live source, which announces none."""

    @abstractmethod
    def read(self) -> Image | None:
        """The next frame, uint8 [H, W, 3] BGR, or None at the end. The array is the caller's."""

    @abstractmethod
    def skip(self) -> bool:
        """Skip a frame without making a picture of it; False at the end."""

    def position_s(self) -> float | None:
        """The time of the last frame in the source's own seconds; None where the source has no times."""
        return None

    def recycle(self, image: Image) -> None:  # noqa: B027  (most decoders allocate every frame)
        """Give back an array of `read` that is not needed any more; a later frame may be read into it."""

    @abstractmethod
    def close(self) -> None:
        """Release the device, file or connection."""


def open_capture(
    target: str | int, shown: str, advice: str, decoder: DecoderName, timeout_s: float, cancelled: threading.Event
) -> Capture:
    """Open a file, URL or webcam number; a URL or webcam in a process of its own (`runtime.streams.process`).

    For a URL or webcam, `timeout_s` bounds opening it and waiting for its next frame, and `cancelled`, once set, ends
    both. `shown` and `advice` go into the message of the `StreamError` that it raises where `target` cannot be opened.
    """
    if (is_url(target) or isinstance(target, int)) and decoder != "nvidia":
        from runtime.streams.process import ProcessCapture, possible  # here, because it imports this module

        if possible():
            return ProcessCapture(target, shown, advice, decoder, timeout_s, cancelled)
    return open_here(target, shown, advice, decoder, timeout_s)


def open_here(target: str | int, shown: str, advice: str, decoder: DecoderName, timeout_s: float) -> Capture:
    """`open_capture`, in this process for every target."""
    if decoder == "pyav":
        return PyAvCapture(target, shown, advice, timeout_s)
    if decoder == "nvidia":
        return NvidiaCapture(target, shown, advice)
    return OpenCvCapture(target, shown, advice, timeout_s)


def plausible_fps(fps: float) -> float:
    """`fps` where it can be true, else 25: cameras report 0, or the 90000 of a clock."""
    return fps if 0 < fps <= 1000 else 25.0


class OpenCvCapture(Capture):
    """`cv2.VideoCapture`. It rotates frames as the file says."""

    def __init__(self, target: str | int, shown: str, advice: str, timeout_s: float) -> None:
        if isinstance(target, str) and is_url(target) and cv2.CAP_FFMPEG in cv2.videoio_registry.getBackends():
            self._capture = opencv_url(target, timeout_s)
        else:
            self._capture = cv2.VideoCapture(target)
        if not self._capture.isOpened():
            raise StreamError(f"{shown}: cannot be opened; {advice}")
        self.fps = plausible_fps(self._capture.get(cv2.CAP_PROP_FPS))
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)  # far below zero where FFmpeg knows no length
        self.count = int(count) if 0 < count < math.inf else None
        self._spare: Image | None = None

    def read(self) -> Image | None:
        spare, self._spare = self._spare, None
        read, image = self._capture.read() if spare is None else self._capture.read(spare)
        return np.asarray(image, np.uint8) if read and image is not None else None

    def skip(self) -> bool:
        return self._capture.grab()

    def position_s(self) -> float | None:
        position = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        return position if 0 <= position < math.inf else None

    def recycle(self, image: Image) -> None:
        self._spare = image

    def close(self) -> None:
        self._capture.release()


class PyAvCapture(Capture):
    """FFmpeg through PyAV (the extra `video`). It gives the stream's own timestamps, and frames whose size changes."""

    def __init__(self, target: str | int, shown: str, advice: str, timeout_s: float) -> None:
        if isinstance(target, int):
            raise StreamError(f"{shown}: webcams are read by the decoder opencv; pyav reads files and URLs")
        try:
            import av
        except ModuleNotFoundError as error:
            advice = "pip install 'isodet[video]', or take the decoder opencv"
            raise StreamError(f"{shown}: the decoder pyav needs the package {error.name!r}: {advice}") from None
        self._errors: tuple[type[Exception], ...] = (av.error.FFmpegError,)
        self._damage: type[Exception] = av.error.InvalidDataError
        timeout = (timeout_s, timeout_s) if is_url(target) else None
        for quick in (True, False):
            try:
                self._container = av.open(target, options=url_options(target, quick), timeout=timeout)
            except (*self._errors, OSError, ValueError) as error:
                raise cannot_open(shown, _reason(error), advice) from None
            if all(video.width for video in self._container.streams.video) or not url_options(target, quick):
                break
            self._container.close()  # the first packet has no size: look at more packets
        if not self._container.streams.video:
            self._container.close()
            raise StreamError(f"{shown}: holds no video; {advice}")
        stream = self._container.streams.video[0]
        self.fps = plausible_fps(float(stream.average_rate or 0))
        length = self._container.duration
        known = stream.frames or (round(length / av.time_base * self.fps) if length and length > 0 else 0)
        self.count = known if known > 0 else None
        stream.thread_type = "AUTO"
        if is_url(target) and self.count is None:
            stream.codec_context.thread_count = 1  # each further thread delays the video by a frame
        self._shown = shown
        self._start = float(stream.start_time * stream.time_base) if stream.start_time and stream.time_base else 0.0
        self._frames = self._decode(stream)
        self._position: float | None = None

    def _decode(self, stream: Any) -> Iterator[Any]:
        bad = 0
        for packet in self._container.demux(stream):
            try:
                frames = packet.decode()
            except self._damage:  # as OpenCV, go on after a lost packet, and end only after many in a row
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
        quarter_turns = round(frame.rotation / 90)  # counter-clockwise, as in numpy
        return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="bgr24"), quarter_turns))

    def skip(self) -> bool:
        return self._next() is not None

    def position_s(self) -> float | None:
        return self._position

    def close(self) -> None:
        self._container.close()


class NvidiaCapture(Capture):
    """`PyNvVideoCodec.ThreadedDecoder` on GPU 0. Frames come to host memory, where the letterbox needs them.

    It gives no timestamps: `position_s` is None, and times follow from the number of a frame. It does not rotate frames
    as the file says, so this class does. The GPU computes the colors of H.264 and HEVC: expect them to differ from
    FFmpeg's by a few gray levels.
    """

    def __init__(self, target: str | int, shown: str, advice: str) -> None:
        if isinstance(target, int) or "://" in target:
            raise StreamError(f"{shown}: the decoder nvidia reads video files; webcams and URLs want opencv or pyav")
        try:
            import PyNvVideoCodec as nvc
        except ModuleNotFoundError as error:
            advice = "pip install 'isodet[nvidia]', or take the decoder opencv"
            raise StreamError(f"{shown}: the decoder nvidia needs the package {error.name!r}: {advice}") from None
        except (RuntimeError, ImportError, OSError) as error:  # no driver, or one without its video libraries
            raise StreamError(f"{shown}: the decoder nvidia finds no GPU that decodes: {_line(error)}") from None
        try:
            self._decoder = nvc.ThreadedDecoder(
                target, NVIDIA_AHEAD, gpu_id=0, use_device_memory=False, output_color_type=nvc.OutputColorType.RGB
            )
            stream = self._decoder.get_stream_metadata()
        except Exception as error:  # the bindings raise whatever their C++ did
            raise StreamError(f"{shown}: cannot be decoded on the GPU ({_line(error)}); {advice}") from None
        self.fps = plausible_fps(float(stream.average_fps))
        self.count = int(stream.num_frames) or None
        self._shown = shown
        with opened_video(target) as video:  # clockwise, as the file asks for
            self._quarter_turns = round(video.get(cv2.CAP_PROP_ORIENTATION_META) / 90) if video.isOpened() else 0

    def _next(self) -> Any:
        try:
            frames = self._decoder.get_batch_frames(1)
        except Exception as error:  # as above
            raise StreamError(f"{self._shown}: cannot be decoded any further ({_line(error)})") from None
        return frames[0] if frames else None

    def read(self) -> Image | None:
        frame = self._next()
        if frame is None:
            return None
        # This copies: the decoder writes a later frame into the same memory.
        image = cv2.cvtColor(np.asarray(np.from_dlpack(frame), np.uint8), cv2.COLOR_RGB2BGR)
        return np.ascontiguousarray(np.rot90(image, -self._quarter_turns), np.uint8)

    def skip(self) -> bool:
        return self._next() is not None

    def close(self) -> None:
        self._decoder.end()


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _reason(error: Exception) -> str:
    return without_password(getattr(error, "strerror", None) or str(error))
