"""What a picture file says of itself: its size and EXIF orientation, read without decoding its pixels.

The rule for turned pictures. `read_image` turns a picture upright as its EXIF orientation says. Annotations whose
width and height are those of the upright picture describe the upright picture. Annotations whose width and height are
exactly swapped, of a file with an orientation that swaps them (5 to 8), were made on the pixels as stored: their
boxes are turned with the picture. Any other difference in size is an error.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.encoded import JPEG_FRAMES, exif_orientation, jpeg_segments
from runtime.image import ImageError, read_image
from runtime.records import ImageRecord

_PNG = b"\x89PNG\r\n\x1a\n"
_HEAD = 1 << 18
"""Bytes read at first; a JPEG's EXIF and size lie within its first few segments of at most 64 KiB."""


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of the picture at `path`, upright: the shape that `read_image` gives it.

    Files other than JPEG, PNG and BMP, and those whose header does not say, are decoded. Raises `ImageError`.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise ImageError(path, f"cannot be read: {error.strerror}") from None
    except ValueError as error:  # a NUL, or half of a surrogate pair
        raise ImageError(path, f"is no name that a file can have: {error}") from None
    size: tuple[int, int] | None = None
    if head.startswith(b"\xff\xd8"):
        size = _jpeg_size(head)
    elif head.startswith(_PNG) and head[12:16] == b"IHDR" and b"eXIf" not in head:
        width, height = struct.unpack(">II", head[16:24])
        # An eXIf chunk may follow the pixels, and a file that does not end may have lost it.
        size = (height, width) if len(head) < _HEAD and head.rstrip(b"\0")[-8:-4] == b"IEND" else None
    elif head.startswith(b"BM") and len(head) >= 26 and struct.unpack("<I", head[14:18])[0] >= 40:
        width, height = struct.unpack("<ii", head[18:26])
        size = (abs(height), width)
    if size is None or min(size) < 1:
        image = read_image(path)
        return image.shape[0], image.shape[1]
    return size


def _jpeg_size(head: bytes) -> tuple[int, int] | None:
    for marker, segment in jpeg_segments(head):
        if marker in JPEG_FRAMES and len(segment) >= 5:
            height, width = struct.unpack(">HH", segment[1:5])
            return (width, height) if exif_orientation(head) >= 5 else (height, width)
    return None


def upright(record: ImageRecord, image_hw: tuple[int, int]) -> ImageRecord:
    """`record` in the frame of its picture as read: itself, or turned with the picture by the rule of this module.

    Raises `ImageError` where the sizes differ otherwise: boxes of another frame would teach nonsense.
    """
    if image_hw == (record.height, record.width):
        return record
    h, w = image_hw
    said = f"the picture is {w}x{h} but its annotation says {record.width}x{record.height} (width x height)"
    if image_hw != (record.width, record.height):
        raise ImageError(record.path, said)
    try:
        orientation = exif_orientation(record.path.read_bytes())
    except OSError as error:
        raise ImageError(record.path, f"cannot be read: {error.strerror}") from None
    if orientation < 5:
        raise ImageError(record.path, f"{said}, and the file has no EXIF orientation that would turn it")
    boxes = turned_boxes(record.boxes_xyxy, (record.height, record.width), orientation)
    return replace(record, height=h, width=w, boxes_xyxy=boxes)


def turned_boxes(boxes_xyxy: NDArray[np.float32], stored_hw: tuple[int, int], orientation: int) -> NDArray[np.float32]:
    """Boxes [G,4] on the stored pixels of a picture of EXIF orientation 5..8, as boxes on the upright picture."""
    height, width = stored_hw
    x1, y1, x2, y2 = boxes_xyxy.T
    # Upright x comes from stored y, and upright y from stored x: forwards, or counted from the far side.
    left, right = (height - y2, height - y1) if orientation in (6, 7) else (y1, y2)
    top, bottom = (width - x2, width - x1) if orientation in (7, 8) else (x1, x2)
    return np.stack([left, top, right, bottom], axis=1).astype(np.float32)
