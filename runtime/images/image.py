"""Pictures: reading complete files only, and the letterbox that makes every network input.

Training, validation and deployment all use this letterbox, so that a model sees the same pixels everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from isodet.errors import ArgumentError, IsodetError
from runtime.files.write import replacing
from runtime.images.encoded import apply_orientation, decoded_damage, encoded_format, exif_orientation, refusal

Image = NDArray[np.uint8]
"""uint8 [H, W, 3], blue-green-red as OpenCV and cameras give it."""

FILL = 114
"""Gray of the letterbox's right and bottom border."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class ImageError(IsodetError, ValueError):
    """A picture file that cannot be used: missing, not a picture, or cut short."""

    path: Path

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}", path=path, image=Path(path).name)
        self.reason = reason


def read_image(path: str | Path) -> Image:
    """The picture at `path` as uint8 [H, W, 3] BGR, turned upright as its EXIF orientation says.

    Gray becomes three equal channels, alpha is dropped (colors as stored under it), CMYK is converted. 16-bit
    samples keep their high byte (value // 256): the range 0..65535 becomes 0..255. Stretch pictures that use only a
    part of this range, as those of 12-bit and thermal cameras, before: in training and in deployment.

    Raises `ImageError` for a file that is missing, is not a picture, or is truncated: OpenCV alone would return a
    truncated JPEG with the missing part gray, without an error. Also, before anything is decoded, for more pixels than
    `runtime.images.encoded.MAX_PIXELS`.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise ImageError(path, "no such picture file") from None
    except IsADirectoryError:
        raise ImageError(path, "is a folder, expected a picture file") from None
    except OSError as error:
        raise ImageError(path, f"cannot be read: {error.strerror}") from None
    except ValueError as error:  # a NUL, or half of a surrogate pair, in the name
        raise ImageError(path, f"is no name that a file can have: {error}") from None
    return decode_image(data, path)


def decode_image(data: bytes, path: str | Path) -> Image:
    """The encoded picture `data` as uint8 [H, W, 3] BGR; `path` names it in an `ImageError`."""
    if not data:
        raise ImageError(path, "the file is empty")
    if reason := refusal(data):
        raise ImageError(path, reason)
    try:
        tiff = encoded_format(data) == "TIFF"  # OpenCV scales 16-bit samples of a TIFF in several ways, PNG's in one
        # All formats but TIFF are turned upright below: OpenCV does not turn some WebP and all AVIF.
        flags = cv2.IMREAD_COLOR | (cv2.IMREAD_ANYDEPTH if tiff else cv2.IMREAD_IGNORE_ORIENTATION)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:  # such as more pixels than OPENCV_IO_MAX_IMAGE_PIXELS
        raise ImageError(path, f"cannot be decoded: {error.err or error}") from None
    if image is None:
        raise ImageError(path, f"not a picture that OpenCV can decode (expected {', '.join(IMAGE_SUFFIXES)})")
    if image.dtype == np.uint16:
        image = np.right_shift(image, 8, dtype=np.uint16).astype(np.uint8)
    if image.dtype != np.uint8:
        raise ImageError(path, f"has {image.dtype} samples; expected 8 or 16 bits, so convert it with a range of yours")
    if image.ndim == 2:  # OpenCV's result for a PFM of one channel
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    pixels: Image = np.asarray(image, np.uint8)
    if reason := decoded_damage(data, pixels):
        raise ImageError(path, reason)
    return pixels if tiff else apply_orientation(pixels, exif_orientation(data))


def write_image(path: str | Path, image: Image) -> None:
    """Write `image` (uint8 [H, W, 3] BGR) in the format of the suffix of `path`, whole or not at all.

    Raises `ImageError` for a suffix that OpenCV does not know, `OSError` where the file cannot be written.
    """
    path = Path(path)
    try:
        done, data = cv2.imencode(path.suffix, image)
    except cv2.error as error:
        raise ImageError(
            path, f"cannot be encoded as {path.suffix or 'a picture without suffix'}: {error.err}"
        ) from None
    if not done:
        raise ImageError(path, f"cannot be encoded as {path.suffix}")
    with replacing(path) as partial:
        partial.write_bytes(data.tobytes())


# ---------------------------------------------------------------------------------------------
# letterbox


@dataclass(frozen=True)
class Letterbox:
    """The placement of one frame in the network's input: resized with its aspect kept, top left, gray elsewhere."""

    size_hw: tuple[int, int]
    """The network's input, pixels."""
    source_hw: tuple[int, int]
    """The frame, pixels."""
    resized_hw: tuple[int, int]
    """The frame within the input, pixels; each axis is rounded, so that the scales of both differ slightly."""
    fill_bgr: tuple[int, int, int] = (FILL, FILL, FILL)
    """The pixels beside the frame."""

    @classmethod
    def fit(cls, source_hw: tuple[int, int], size_hw: tuple[int, int]) -> Letterbox:
        """The largest placement of a frame of `source_hw` in `size_hw`. Raises ValueError for an empty size."""
        (h, w), (height, width) = source_hw, size_hw
        if min(h, w, height, width) < 1:
            raise ArgumentError.of(
                "letterbox", f"expected sizes of at least 1x1, got frame {h}x{w} and input {height}x{width}"
            )
        scale = min(height / h, width / w)
        resized = (min(height, max(1, round(h * scale))), min(width, max(1, round(w * scale))))
        return cls((int(height), int(width)), (int(h), int(w)), resized)

    @property
    def scale_xy(self) -> tuple[float, float]:
        """Input pixels per frame pixel, along x and along y."""
        return self.resized_hw[1] / self.source_hw[1], self.resized_hw[0] / self.source_hw[0]

    def apply(self, image: Image, out: Image | None = None) -> Image:
        """`image` (uint8 [h, w, 3], the frame) as uint8 [H, W, 3], written into `out` where it is given."""
        if image.shape != (*self.source_hw, 3) or image.dtype != np.uint8:
            raise ArgumentError.of(
                "letterbox", f"expected uint8 {[*self.source_hw, 3]}, got {image.dtype} {list(image.shape)}"
            )
        if out is None:
            out = np.empty((*self.size_hw, 3), np.uint8)
        h, w = self.resized_hw
        part = out[:h, :w]
        if self.resized_hw == self.source_hw:
            part[:] = image
        elif part.strides[1:] == (3, 1) and part.strides[0] > 0:  # a layout that OpenCV can write to
            cv2.resize(image, (w, h), dst=part, interpolation=cv2.INTER_LINEAR)
        else:
            part[:] = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
        # One gray level fills fast; three levels, which are seldom needed, take longer than the resize.
        fill = self.fill_bgr[0] if len(set(self.fill_bgr)) == 1 else self.fill_bgr
        out[h:] = fill
        out[:h, w:] = fill
        return out

    def to_input(self, boxes_xyxy: ArrayLike) -> NDArray[np.float32]:
        """Boxes [..., 4] in frame pixels as float32 boxes in input pixels."""
        return (np.asarray(boxes_xyxy, np.float64) * (self.scale_xy * 2)).astype(np.float32)

    def to_source(self, boxes_xyxy: ArrayLike) -> NDArray[np.float32]:
        """Boxes [..., 4] in input pixels as float32 boxes in frame pixels, clipped to the frame."""
        boxes = np.asarray(boxes_xyxy, np.float64) / (self.scale_xy * 2)
        h, w = self.source_hw
        np.maximum(boxes, 0.0, out=boxes)
        np.minimum(boxes, (w, h, w, h), out=boxes)
        return boxes.astype(np.float32)


@dataclass(frozen=True)
class FixedSize:
    """The deployment's rule: every frame into one input size, by `Letterbox.fit`."""

    size_hw: tuple[int, int]
    fill_bgr: tuple[int, int, int] = (FILL, FILL, FILL)

    def fit(self, source_hw: tuple[int, int]) -> Letterbox:
        """The placement of a frame of `source_hw`. Raises ValueError for an empty one."""
        return Letterbox.fit(source_hw, self.size_hw)


@dataclass(frozen=True)
class ShortSide:
    """The detection papers' rule: the short side becomes `short` unless the long side would pass `long`; then padding.

    Each frame has an input size of its own, a multiple of `multiple`. `floor` rounds resized sides down, as
    torchvision does, otherwise to the nearest, as mmdetection does. The papers pad with zeros after normalization:
    before it, that is the mean color `fill_bgr`, up to rounding.
    """

    short: int
    long: int
    multiple: int
    floor: bool
    fill_bgr: tuple[int, int, int]

    def fit(self, source_hw: tuple[int, int]) -> Letterbox:
        """The placement of a frame of `source_hw`. Raises ValueError for an empty one."""
        h, w = source_hw
        if min(h, w) < 1:
            raise ArgumentError.of("resize", f"expected a frame of at least 1x1, got {h}x{w}")
        scale = min(self.short / min(h, w), self.long / max(h, w))
        half = 0.0 if self.floor else 0.5
        height, width = (max(1, int(side * scale + half)) for side in (h, w))
        padded = (-(-height // self.multiple) * self.multiple, -(-width // self.multiple) * self.multiple)
        return Letterbox(padded, (int(h), int(w)), (height, width), self.fill_bgr)


Resize = FixedSize | ShortSide
"""A rule whose `fit(source_hw)` gives the placement of a frame in its input."""


def letterbox(image: Image, size_hw: tuple[int, int]) -> tuple[Image, Letterbox]:
    """`image` (uint8 [h, w, 3]) letterboxed to uint8 [H, W, 3], and the placement that maps boxes back."""
    placement = Letterbox.fit((image.shape[0], image.shape[1]), size_hw)
    return placement.apply(image), placement
