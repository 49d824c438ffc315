"""The size of a picture, read from its file without decoding its pixels."""

from __future__ import annotations

import struct
from pathlib import Path

from runtime.images.encoded import JPEG_FRAMES, exif_orientation, jpeg_segments
from runtime.images.image import ImageError, read_image

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
