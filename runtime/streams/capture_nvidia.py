"""Decoding of video files on an NVIDIA GPU through PyNvVideoCodec (the extra `nvidia`)."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from runtime.images.image import Image
from runtime.streams.capture import Capture, StreamError, plausible_fps
from runtime.streams.video_file import opened_video

AHEAD = 8
"""The number of frames that the decoder's own thread decodes ahead."""


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
            reason = str(error).strip().splitlines()[0]
            raise StreamError(f"{shown}: the decoder nvidia finds no GPU that decodes: {reason}") from None
        try:
            self._decoder = nvc.ThreadedDecoder(
                target, AHEAD, gpu_id=0, use_device_memory=False, output_color_type=nvc.OutputColorType.RGB
            )
            stream = self._decoder.get_stream_metadata()
        except Exception as error:  # the bindings raise whatever their C++ did
            raise StreamError(f"{shown}: cannot be decoded on the GPU ({_line(error)}); {advice}") from None
        self.fps = plausible_fps(float(stream.average_fps))
        self.count = int(stream.num_frames) or None
        self._shown = shown
        self._quarter_turns = _quarter_turns(target)

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


def _quarter_turns(path: str) -> int:
    """Clockwise quarter turns that the file asks for."""
    with opened_video(path) as video:
        return round(video.get(cv2.CAP_PROP_ORIENTATION_META) / 90) if video.isOpened() else 0


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
