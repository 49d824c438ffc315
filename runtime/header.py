"""What a picture file says of itself: its size and EXIF orientation, read without decoding its pixels.

The rule for turned pictures. `read_image` turns a picture upright as its EXIF orientation says. Annotations whose
width and height are those of the upright picture describe the upright picture. Annotations whose width and height are
exactly swapped, of a file with an orientation that swaps them (5 to 8), were made on the pixels as stored: their
boxes are turned with the picture. Any other difference in size is an error.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.image import ImageError, read_image
from runtime.records import ImageRecord

_PNG = b"\x89PNG\r\n\x1a\n"
_HEAD = 1 << 18
"""Bytes read at first; a JPEG's EXIF and size lie within its first few segments of at most 64 KiB."""
_NO_LENGTH = {0x01, 0xD8, *range(0xD0, 0xD8)}
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


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


def declared_pixels(data: bytes) -> int:
    """How many pixels an encoded picture says that it has, or 0 where its format is none that is known here."""
    height, width = _declared_hw(data)
    return height * width


def _declared_hw(data: bytes) -> tuple[int, int]:
    """Of the pixels as stored, turned or not; (0, 0) where the header does not say."""
    if data.startswith(b"\xff\xd8"):
        return _jpeg_size(data) or (0, 0)
    if data.startswith(_PNG) and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return height, width
    if data.startswith(b"BM") and len(data) >= 26:
        width, height = struct.unpack("<ii", data[18:26])
        return abs(height), abs(width)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) >= 30:
        return _webp_size(data)
    if data[:4] in (b"II*\0", b"MM\0*"):
        sides = {tag: value for tag, value in _tiff_entries(data) if tag in (256, 257)}
        return sides.get(257, 0), sides.get(256, 0)
    return 0, 0


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[27:30], "little"), 1 + int.from_bytes(data[24:27], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    width, height = struct.unpack("<HH", data[26:30])
    return height & 0x3FFF, width & 0x3FFF


def _tiff_entries(body: bytes) -> Iterator[tuple[int, int]]:
    """(tag, value) of the whole numbers in the first directory of a TIFF."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(body[:4])
    if order is None or len(body) < 8:
        return
    start = struct.unpack(order + "I", body[4:8])[0]
    if start + 2 > len(body):
        return
    for i in range(struct.unpack(order + "H", body[start : start + 2])[0]):
        entry = body[start + 2 + 12 * i : start + 14 + 12 * i]
        if len(entry) == 12:
            tag, kind = struct.unpack(order + "HH", entry[:4])
            if kind in (3, 4):  # SHORT and LONG
                yield tag, struct.unpack(order + ("H" if kind == 3 else "I"), entry[8 : 10 if kind == 3 else 12])[0]


def _jpeg_size(head: bytes) -> tuple[int, int] | None:
    for marker, segment in _jpeg_segments(head):
        if marker in _FRAMES and len(segment) >= 5:
            height, width = struct.unpack(">HH", segment[1:5])
            return (width, height) if exif_orientation(head) >= 5 else (height, width)
    return None


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, content) of the segments before the pixels."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill bytes
            position += 1
            continue
        if marker in _NO_LENGTH:
            position += 2
            continue
        if marker in (0xD9, 0xDA):
            return
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        yield marker, data[position + 4 : position + 2 + length]
        position += 2 + max(2, length)


def exif_orientation(data: bytes) -> int:
    """The EXIF orientation 1..8 of an encoded JPEG, PNG, WebP or TIFF, of which `data` is the whole or the beginning.

    1, upright, where there is none. TIFF 6.0, tag 274: 2 mirrored, 3 turned by 180 degrees, 4 mirrored upside down,
    5 transposed, 6 to be turned clockwise, 7 transposed about the other diagonal, 8 to be turned anticlockwise.
    """
    body = b""
    if data.startswith(b"\xff\xd8"):
        segments = (content for marker, content in _jpeg_segments(data) if marker == 0xE1)
        body = next((content[6:] for content in segments if content.startswith(b"Exif\0\0")), b"")
    elif data.startswith(_PNG) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        body = _chunk(data)
    elif data[:4] in (b"II*\0", b"MM\0*"):
        body = data
    return _orientation_of_tiff(body)


def _chunk(data: bytes) -> bytes:
    """The EXIF chunk of a PNG or a WebP."""
    png = data.startswith(_PNG)
    position, order = (8, ">") if png else (12, "<")
    while position + 8 <= len(data):
        first, second = data[position : position + 4], data[position + 4 : position + 8]
        length = struct.unpack(order + "I", first if png else second)[0]
        if (second if png else first) in (b"eXIf", b"EXIF"):
            content = data[position + 8 : position + 8 + length]
            return content[6:] if content.startswith(b"Exif\0\0") else content
        position += 12 + length if png else 8 + length + length % 2
    return b""


def _orientation_of_tiff(body: bytes) -> int:
    value = next((value for tag, value in _tiff_entries(body) if tag == 0x0112), 1)
    return value if 1 <= value <= 8 else 1


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
