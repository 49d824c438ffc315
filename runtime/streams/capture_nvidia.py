"""Decoding on an NVIDIA GPU through PyNvVideoCodec, as the extra `nvidia`: video files only."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from runtime.images.image import Image
from runtime.streams.capture import StreamError

AHEAD = 8
"""Frames that the decoder's own thread keeps ready."""


class NvidiaCapture:
    """`PyNvVideoCodec.ThreadedDecoder` on GPU 0. Frames come to host memory, where the letterbox wants them.

    It gives no timestamps (`position_s` is None: frames are counted) and does not turn frames, so that is done here, as
    the file says. The colors of H.264 and HEVC are computed by the GPU: expect some gray levels' difference to FFmpeg.
    """

    def __init__(self, target: str | int, shown: str, advice: str) -> None:
        if isinstance(target, int) or "://" in target:
            raise StreamError(f"{shown}: the decoder nvidia reads video files; webcams and URLs want opencv or pyav")
        try:
            import PyNvVideoCodec as nvc
        except ModuleNotFoundError as error:
            raise StreamError(
                f"{shown}: the decoder nvidia needs the package {error.name!r}: pip install 'isodet[nvidia]', or take "
                "the decoder opencv"
            ) from None
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
        self.fps = float(stream.average_fps) if 0 < stream.average_fps <= 1000 else 25.0
        self.count = int(stream.num_frames) or None
        self._shown = shown
        self._turns = _quarter_turns(target)

    def _next(self) -> Any:
        try:
            frames = self._decoder.get_batch_frames(1)
        except Exception as error:  # see above
            raise StreamError(f"{self._shown}: cannot be decoded any further ({_line(error)})") from None
        return frames[0] if frames else None

    def read(self) -> Image | None:
        frame = self._next()
        if frame is None:
            return None
        # A copy: the decoder writes a later frame to the same place.
        image = cv2.cvtColor(np.asarray(np.from_dlpack(frame), np.uint8), cv2.COLOR_RGB2BGR)
        return np.ascontiguousarray(np.rot90(image, -self._turns), np.uint8)

    def skip(self) -> bool:
        return self._next() is not None

    def position_s(self) -> float | None:
        return None

    def recycle(self, image: Image) -> None:
        """There is nothing to reuse: OpenCV makes an array for every frame."""

    def close(self) -> None:
        self._decoder.end()


def _quarter_turns(path: str) -> int:
    """Clockwise, as the file wants to be shown."""
    header = cv2.VideoCapture(path)
    try:
        return round(header.get(cv2.CAP_PROP_ORIENTATION_META) / 90) % 4 if header.isOpened() else 0
    finally:
        header.release()


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
