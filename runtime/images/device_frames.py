"""Frames in the memory of a GPU, which go into a graph without a copy. This file handles addresses only, no CUDA."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from runtime.images.frames import Color, FrameError, on_device, window_of
from runtime.images.region import Region

COPY = "frame.cpu().numpy() with PyTorch, frame.get() with CuPy"
LEGACY_STREAM = 1
"""CUDA's default stream, as the array interface writes it."""


@dataclass(frozen=True)
class DeviceFrame:
    """uint8 [h, w, 3] BGR on a GPU: a view of an array, which it keeps alive."""

    owner: Any
    pointer: int
    size_hw: tuple[int, int]
    pitch: int
    """Bytes from row to row."""
    stream: int | None
    """CUDA's handle of the stream that has to finish first; None where there is nothing to wait for."""
    device: str | None
    """'cuda:N', or None where the array does not name it."""

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.size_hw, 3)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        data, strides = (self.pointer, False), (self.pitch, 3, 1)
        described = {"shape": self.shape, "typestr": "|u1", "data": data, "strides": strides}
        return described | {"stream": self.stream, "version": 3}


def device_frames(array: Any, where: str, batch: bool = True) -> list[DeviceFrame]:
    """The frames of an array with `__cuda_array_interface__` (CuPy, PyTorch, Numba): one, or B of [B, H, W, 3] where
    that is allowed (`batch`).

    There may be a gap between rows, as in a decoder's surfaces and in crops, but not between the pixels of a row. The
    stream of the array is waited for, by version 3 of that interface; where an array names none, CUDA's default
    stream, or PyTorch's current one. Raises `FrameError` for an array that is not a picture.
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


def take_on_device(
    frame: Any, index: int, color: Color, region: Region | None, device: str
) -> tuple[DeviceFrame, tuple[int, int]]:
    """One frame on the GPU `device`, or its part in `region`, and the size [H, W] of the full frame.

    Raises `FrameError` naming its `index`. Nothing is copied to the host or converted in silence, and nothing is
    resized on the GPU, because its pixels would differ from those that the model was verified with.
    """
    if color != "bgr":
        advice = "frame.flip(-1) with PyTorch, cupy.ascontiguousarray(frame[..., ::-1]) with CuPy"
        raise FrameError.of("color", f"frames on a device are taken as BGR; turn them there: {advice}")
    if not on_device(frame):
        raise FrameError(f"frame {index}: in host memory, and others are on a device; expected one kind in one call")
    (full,) = device_frames(frame, f"frame {index}", batch=False)
    if full.device not in (None, device):
        raise FrameError(f"frame {index}: on {full.device}, and the model is on {device}")
    if region is None:
        return full, full.size_hw
    x1, y1, x2, y2 = window_of(region, full.size_hw, index)
    return replace(full, pointer=full.pointer + y1 * full.pitch + 3 * x1, size_hw=(y2 - y1, x2 - x1)), full.size_hw


def _unnamed_stream(array: Any) -> int:
    """The stream of an array that does not name it: PyTorch makes tensors on the current stream of the thread."""
    torch = sys.modules.get("torch")  # a program with a tensor has imported it
    if torch is None or not isinstance(array, torch.Tensor):
        return LEGACY_STREAM
    return int(torch.cuda.current_stream(array.device).cuda_stream) or LEGACY_STREAM
