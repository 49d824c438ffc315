"""Frames in the memory of a GPU, which go into a graph without leaving it. Knows no CUDA: addresses and sizes only."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime.detections import Detections
from runtime.frames import Color, FrameError, on_device
from runtime.region import Region

if TYPE_CHECKING:
    from runtime.detector import Detector

COPY = "frame.cpu().numpy() with PyTorch, frame.get() with CuPy"
LEGACY_STREAM = 1
"""CUDA's default stream, as the array interface writes it."""


@dataclass(frozen=True)
class DeviceFrame:
    """uint8 [h, w, 3] BGR on a GPU: a view, which keeps the array alive that it is of."""

    owner: Any
    pointer: int
    size_hw: tuple[int, int]
    pitch: int
    """Bytes from row to row."""
    stream: int | None
    """CUDA's handle of the stream that has to come to an end first; None where there is nothing to wait for."""
    device: str | None
    """'cuda:N', or None where the array does not say."""

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.size_hw, 3)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape, "typestr": "|u1", "data": (self.pointer, False), "version": 3,
            "strides": (self.pitch, 3, 1), "stream": self.stream,
        }  # fmt: skip


def device_frames(array: Any, where: str, batch: bool = True) -> list[DeviceFrame]:
    """The frames of an array with `__cuda_array_interface__` (CuPy, PyTorch, Numba): one, or B of [B, H, W, 3] where
    that is allowed (`batch`).

    Rows may be apart, as a decoder's surfaces and crops have them; pixels of a row may not. As that interface (version
    3) says, its stream is waited for; of an array that names none, CUDA's default stream, and PyTorch's current one.
    Raises `FrameError` for what is no picture.
    """
    if isinstance(array, DeviceFrame):
        return [array]
    try:
        described = array.__cuda_array_interface__
    except (AttributeError, RuntimeError, TypeError) as error:  # such as PyTorch's for a tensor that wants a gradient
        raise FrameError(
            f"{where}: this {type(array).__name__} does not give its memory ({error}); copy it: {COPY}"
        ) from None
    shape, kind = tuple(described["shape"]), str(described["typestr"])
    if len(shape) not in ((3, 4) if batch else (3,)) or shape[-1] != 3 or kind != "|u1":
        expected, got = "uint8 [H, W, 3]" + " or [B, H, W, 3]" * batch, f"{np.dtype(kind)} {list(shape)}"
        raise FrameError(f"{where}: expected {expected} (BGR) on the device, got {got}")
    height, width = shape[-3:-1]
    if min(height, width) < 1:
        raise FrameError(f"{where}: expected a frame of at least 1x1 pixel, got {list(shape)}")
    packed = (height * width * 3, width * 3, 3, 1)[-len(shape) :]
    strides = tuple(described.get("strides") or packed)
    if strides[-2:] != (3, 1) or strides[-3] < width * 3:
        raise FrameError(f"{where}: expected rows of whole pixels, one after the other; got strides {strides}; copy it")
    pointer, stream = int(described["data"][0]), described.get("stream", _unnamed_stream(array))
    step = strides[0] if len(shape) == 4 else 0
    count = shape[0] if len(shape) == 4 else 1
    device = f"cuda:{int(array.__dlpack_device__()[1])}" if hasattr(array, "__dlpack_device__") else None
    return [DeviceFrame(array, pointer + i * step, (height, width), strides[-3], stream, device) for i in range(count)]


def _unnamed_stream(array: Any) -> int:
    """PyTorch does not name the stream that a tensor is made on: it is the thread's current one."""
    torch = sys.modules.get("torch")  # who has a tensor has imported it
    if torch is None or not isinstance(array, torch.Tensor):
        return LEGACY_STREAM
    return int(torch.cuda.current_stream(array.device).cuda_stream) or LEGACY_STREAM


def detect_on_device(
    detector: Detector,
    frames: Sequence[Any],
    limits: float | NDArray[np.float32],
    color: Color,
    region: Region | None,
) -> list[Detections]:
    """`Detector.__call__` for frames on the GPU that the model is on; each of the size that its graph takes.

    Raises `FrameError` for others: nothing is copied to the host in silence, and nothing is resized on the GPU, because
    that gives other pixels than what the model was verified with.
    """
    backend = detector.backend
    run = getattr(backend, "on_device", None)
    if run is None:
        raise FrameError(
            f"expected frames in host memory, got an array on a device: {backend.name} on {backend.device} takes none; "
            f"copy it: {COPY}"
        )
    if color != "bgr":
        raise FrameError("color: frames on a device are taken as BGR; turn them there: frame.flip(-1) with PyTorch, "
                         "cupy.ascontiguousarray(frame[..., ::-1]) with CuPy")  # fmt: skip
    rule = detector.card.resize_rule()
    taken = [_taken(detector, frame, index, region) for index, frame in enumerate(frames)]
    results: list[Detections] = []
    for start in range(0, len(taken), backend.max_batch):
        chunk = [frame for frame, _ in taken[start : start + backend.max_batch]]
        placements = [rule.fit(frame.size_hw) for frame in chunk]
        found = detector.postprocess(detector.infer(chunk, run), placements, limits)
        if region is not None:
            sizes = [size for _, size in taken[start : start + backend.max_batch]]
            found = [region.to_frame(d, size) for d, size in zip(found, sizes, strict=True)]
        results += found
    return results


def _taken(detector: Detector, frame: Any, index: int, region: Region | None) -> tuple[DeviceFrame, tuple[int, int]]:
    """The frame, or its region, and the size of the whole."""
    if not on_device(frame):
        raise FrameError(f"frame {index}: in host memory, and others are on a device; expected one kind in one call")
    (whole,) = device_frames(frame, f"frame {index}", batch=False)
    if whole.device not in (None, detector.backend.device):
        raise FrameError(f"frame {index}: on {whole.device}, and the model is on {detector.backend.device}")
    seen = whole
    if region is not None:
        try:
            x1, y1, x2, y2 = region.window(whole.size_hw)
        except ValueError as error:
            raise FrameError(f"frame {index}: {error}") from None
        seen = replace(whole, pointer=whole.pointer + y1 * whole.pitch + 3 * x1, size_hw=(y2 - y1, x2 - x1))
    height, width = detector.card.frame_hw
    placement = detector.card.resize_rule().fit(seen.size_hw)
    if not seen.size_hw == (height, width) == placement.size_hw == placement.resized_hw:
        got = f"{seen.size_hw[0]}x{seen.size_hw[1]}"
        raise FrameError(
            f"frame {index}: on a device, expected the graph's own size {height}x{width} (height x width), got {got}: "
            f"export the model for this size (exporter onnx --source-size {seen.size_hw[0]},{seen.size_hw[1]}), which "
            f"puts the letterbox into the graph; or copy it: {COPY}"
        )
    return seen, whole.size_hw
