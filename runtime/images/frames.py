"""Frames as an application gives them, and as a detector takes them: uint8 [H, W, 3] BGR in host memory."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np

from isodet.errors import ArgumentError, IsodetError
from runtime.images.encoded import MAX_PIXELS
from runtime.images.image import Image, read_image
from runtime.images.region import Region

Frame = Image | str | PathLike[str]
"""One picture: uint8 [H, W, 3], or the path of a picture file. An array of another library in host memory (DLPack, as
PyTorch's CPU tensors) is taken without a copy."""

Color = Literal["bgr", "rgb"]
"""Order of the channels of arrays; files are always read as BGR."""

_IN_HOST_MEMORY = (1, 3, 11)
"""DLPack's device types kDLCPU, kDLCUDAHost and kDLROCMHost: the last two are pinned memory."""

_ON_CUDA = (2, 13)
"""kDLCUDA and kDLCUDAManaged."""


class FrameError(IsodetError, ValueError):
    """A frame that is not a picture for the detector; the message states what was expected and what came."""


class LoadedFrame(NamedTuple):
    """A frame as the detector sees it."""

    image: Image
    """uint8 [h, w, 3] BGR: the frame, or the rectangle of its region; a view where nothing had to be converted."""
    frame_hw: tuple[int, int]
    """Size of the full frame, pixels."""


def load_frame(
    frame: Frame, index: int, color: Color = "bgr", region: Region | None = None, in_tiles: bool = False
) -> LoadedFrame:
    """One frame, or its part in `region`. Raises `FrameError` naming its `index`, `ImageError` for a broken file.

    `in_tiles`: an array may have any number of pixels, since the network sees it in parts.
    """
    if color not in ("bgr", "rgb"):
        raise ArgumentError.of("color", f"expected bgr or rgb, got {color!r}")
    # Arrays first: the check for an abstract class takes longer than all the rest.
    from_file = False
    if isinstance(frame, np.ndarray) or not isinstance(frame, (str, PathLike)):
        image = _checked(frame, index)
    else:
        from_file, image = True, read_image(Path(frame))
    frame_hw = (image.shape[0], image.shape[1])
    if region is not None:
        x1, y1, x2, y2 = window_of(region, frame_hw, index)
        image = image[y1:y2, x1:x2]
    if image.shape[0] * image.shape[1] > MAX_PIXELS and not in_tiles:
        raise FrameError(
            f"frame {index}: expected at most {MAX_PIXELS} pixels, got {image.shape[1]}x{image.shape[0]} "
            "(width x height): detect in tiles (Detector(..., tiles=Tiles())), or in a part of it (roi=)"
        )
    if color == "rgb" and not from_file:
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), np.uint8)
    return LoadedFrame(image, frame_hw)


def window_of(region: Region, frame_hw: tuple[int, int], index: int) -> tuple[int, int, int, int]:
    """The pixels (x1, y1, x2, y2) of `region` in the frame of number `index`. Raises `FrameError` for none."""
    try:
        return region.window(frame_hw)
    except ValueError as error:
        raise FrameError(f"frame {index}: {error}", key="roi") from None


def as_list(frames: Any) -> Sequence[Frame]:
    """The frames of one call, in order. Raises `FrameError` for what is neither a frame nor several."""
    if isinstance(frames, (list, tuple)):
        return frames
    if isinstance(frames, (str, PathLike)):
        return [frames]
    if on_device(frames):
        from runtime.images.device_frames import device_frames

        return device_frames(frames, "frames")  # type: ignore[return-value]  # for frames on a device only
    array = _host_array(frames, "frames")
    if array is None:
        raise FrameError(
            f"expected a uint8 [H, W, 3] NumPy array, a list of them, or a path; got {type(frames).__name__}"
        )
    # Four dimensions are a batch; any other array is one frame, and judged as such.
    return list(array) if array.ndim == 4 else [array]


def _checked(frame: Any, index: int) -> Image:
    array = _host_array(frame, f"frame {index}")
    if array is not None and array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8 and array.size:
        return array
    expected = f"frame {index}: expected uint8 [H, W, 3]"
    if array is None:
        kind = type(frame)
        advice = "; numpy.asarray(frame), with color='rgb'" if kind.__module__.partition(".")[0] == "PIL" else ""
        raise FrameError(f"{expected} (BGR), got {kind.__name__}{advice}")
    channels, advice = array.shape[2] if array.ndim == 3 else 0, ""
    if array.ndim == 2 or channels == 1:
        advice = ": a gray picture; use cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR)"
    elif channels == 4:
        advice = ": a picture with alpha; use cv2.cvtColor(frame, cv2.COLOR_BGRA2BGR)"
    elif channels != 3:
        advice = ": planes; use frame.transpose(1, 2, 0)" if array.ndim == 3 and array.shape[0] == 3 else ""
    elif array.dtype != np.uint8:
        advice = "; scale it to 0..255 and use .astype(numpy.uint8)" if array.dtype.kind == "f" else ""
    size = "" if channels != 3 or array.dtype != np.uint8 else " of at least 1x1 pixel"
    raise FrameError(f"{expected} (BGR){size}, got {array.dtype} {list(array.shape)}{advice}")


def on_device(frame: Any) -> bool:
    """Whether `frame` is an array in the memory of a CUDA device."""
    if isinstance(frame, np.ndarray):
        return False
    if hasattr(frame, "__dlpack_device__"):
        return int(frame.__dlpack_device__()[0]) in _ON_CUDA
    return hasattr(frame, "__cuda_array_interface__")


def _host_array(frame: Any, name: str) -> np.ndarray[Any, Any] | None:
    """`frame` as a NumPy array without a copy; None for another object. Raises `FrameError` for an array on a device.

    The caller has to copy it from the device: a copy here would be silent, and it is the most expensive operation on a
    frame.
    """
    if isinstance(frame, np.ndarray):
        return frame
    elsewhere = hasattr(frame, "__dlpack_device__") and int(frame.__dlpack_device__()[0]) not in _IN_HOST_MEMORY
    if elsewhere or on_device(frame):
        raise FrameError(
            f"{name}: expected an array in host memory, got a {type(frame).__name__} on a device; copy it: "
            "frame.cpu().numpy() with PyTorch, frame.get() with CuPy (a Detector on that GPU takes frames of its "
            "graph's size there, of arrays with __cuda_array_interface__; a batcher takes none)"
        )
    if not hasattr(frame, "__dlpack__"):
        return None
    try:
        return np.from_dlpack(frame)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise FrameError(f"{name}: this {type(frame).__name__} cannot be read as a NumPy array: {error}") from None
