"""Video decoded on the GPU by the runtime's decoder `nvidia`, beside the decoder `opencv`: speed, frames, pixels.

Clips are made here, of whatever can be made: H.264 by the GPU's own encoder, which data center cards lack, and what
OpenCV's build writes.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.stage import NotHere, Row, Setting, one_line
from runtime.streams.capture import DecoderName, StreamError
from runtime.streams.open import open_source

SIZE_HW = (720, 1280)
OPENCV = {"MPEG-4": ("mp4v", "mp4"), "VP9": ("VP90", "webm"), "VP8": ("VP80", "webm"), "Motion JPEG": ("MJPG", "avi")}
"""Codecs by OpenCV's four letters and a suffix."""
FAR = 3.0
"""Gray levels that pixels may differ by on average: each decoder computes colors from the stream's in its own way."""
LOOKED_AT = 30


def rows(setting: Setting) -> Iterator[Row]:
    setting.require_cuda()
    if importlib.util.find_spec("PyNvVideoCodec") is None:
        raise NotHere("PyNvVideoCodec is not here; benchmarks/gpu/carry.sh video brings it")
    place = setting.work / "video"
    place.mkdir(parents=True, exist_ok=True)
    count = setting.amount(150, 30)
    makers: dict[str, Callable[[], Path]] = {"H.264": lambda: encoded_by_gpu(place / "h264.h264", count)}
    for codec, (letters, suffix) in OPENCV.items():
        makers[codec] = lambda letters=letters, suffix=suffix: encoded_by_opencv(  # type: ignore[misc]
            place / f"{letters}.{suffix}", letters, count
        )
    read = 0
    for codec, make in makers.items():
        if setting.left() < 8:
            yield Row(codec, None, note="no time left")
            continue
        try:
            clip = make()
        except Exception as error:  # the encoder's bindings raise whatever their C++ did
            yield Row(f"{codec}: clip", None, note=f"cannot be encoded here: {one_line(error)}")
            continue
        try:
            yield from compared(codec, clip)
        except StreamError as error:
            yield Row(f"{codec}: decoder nvidia", None, note=one_line(error))
            continue
        read += 1
    yield Row("codecs that the decoder nvidia read", read, least=1)


def pictures(count: int) -> Iterator[NDArray[np.uint8]]:
    """A smooth background that drifts and a square that moves, uint8 [H, W, 3] BGR."""
    height, width = SIZE_HW
    y, x = np.mgrid[:height, :width]
    for i in range(count):
        sharp = np.stack([(x // 8 + i) % 256, (y // 6 + 2 * i) % 256, (x + y) // 16 % 256], axis=2).astype(np.uint8)
        image = np.asarray(cv2.GaussianBlur(sharp, (0, 0), 6), np.uint8)
        left = 8 * i % (width - 160)
        image[280:440, left : left + 160] = (40, 60, 200)
        yield image


def encoded_by_opencv(path: Path, letters: str, count: int) -> Path:
    """A clip of `count` frames. Raises OSError where this OpenCV does not encode it."""
    if path.exists():
        return path
    height, width = SIZE_HW
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*letters), 30.0, (width, height))
    if not writer.isOpened():
        raise OSError(f"OpenCV {cv2.__version__} does not encode {letters}")
    for image in pictures(count):
        writer.write(image)
    writer.release()
    return path


def encoded_by_gpu(path: Path, count: int) -> Path:
    """An H.264 stream of `count` frames from the GPU's encoder. Raises what its bindings raise."""
    import PyNvVideoCodec as nvc

    height, width = SIZE_HW
    encoder: Any = nvc.CreateEncoder(width, height, "NV12", True, codec="h264", gpu_id=0)
    stream = bytearray()
    for i, image in enumerate(pictures(count)):
        about = nvc.NV_ENC_PIC_PARAMS()
        about.inputTimeStamp = i
        for packet in encoder.Encode(nv12(image).ravel(), about):
            stream += bytes(packet["data"])
    for packet in encoder.EndEncode():
        stream += bytes(packet["data"])
    path.write_bytes(stream)
    return path


def nv12(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """BGR [H, W, 3] as [3 H / 2, W]: brightness, and below it the two colors of every four pixels in turns."""
    height, width = image.shape[:2]
    planar = cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420)
    quarter = height * width // 4
    colors = planar.reshape(-1)[height * width :]
    pairs = np.stack([colors[:quarter], colors[quarter:]], axis=1).reshape(height // 2, width)
    return np.concatenate([planar[:height], pairs]).astype(np.uint8)


def compared(codec: str, clip: Path) -> Iterator[Row]:
    """Frames, speed and pixels of both decoders. Raises `StreamError`."""
    firsts: dict[DecoderName, list[NDArray[np.uint8]]] = {}
    counts: dict[DecoderName, int] = {}
    rates: dict[DecoderName, float] = {}
    decoders: tuple[DecoderName, ...] = ("nvidia", "opencv")
    for decoder in decoders:
        firsts[decoder] = []
        counts[decoder] = 0
        started = time.perf_counter()
        for frame in open_source(clip, decoder=decoder):
            counts[decoder] += 1
            if len(firsts[decoder]) < LOOKED_AT:
                firsts[decoder].append(frame.image.copy())
        rates[decoder] = counts[decoder] / (time.perf_counter() - started)
    height, width = SIZE_HW
    yield Row(f"{codec}: decoder nvidia", rates["nvidia"], "frames/s",
              note=f"opencv {rates['opencv']:.0f}; {height} x {width}, opening included")  # fmt: skip
    missing = counts["opencv"] - counts["nvidia"]
    yield Row(f"{codec}: frames that opencv gives and nvidia does not", missing, least=0, most=0,
              note=f"{counts['nvidia']} and {counts['opencv']}")  # fmt: skip
    pairs = list(zip(firsts["nvidia"], firsts["opencv"], strict=False))
    if not pairs or pairs[0][0].shape != pairs[0][1].shape:
        yield Row(f"{codec}: pixels apart", None, most=FAR, note="no frames of one size to compare")
        return
    apart = [float(np.abs(a.astype(np.int16) - b).mean()) for a, b in pairs]
    yield Row(f"{codec}: pixels apart, on average", sum(apart) / len(apart), "gray levels", most=FAR,
              note=f"of {len(pairs)} frames; {max(apart):.2f} in the worst")  # fmt: skip
