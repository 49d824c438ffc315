"""What the bytes of an encoded picture say of it, without decoding: its pixels, and how it is to be turned.

`runtime.images.image` decodes by it and `runtime.images.image_header` reads it from files, so that both have one
reading.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

MAX_PIXELS = 1 << 28
"""Largest picture, frame, or region of one: 16384x16384, 0.8 GB. More is a mistaken shape, a file made to exhaust the
memory, or wants to be cut into tiles, since the network's input shows nothing of its objects."""

JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""Markers of the segments that hold the size."""
_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*")
_NO_LENGTH = {0x01, 0xD8, *range(0xD0, 0xD8)}


def encoded_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of the stored pixels of an encoded JPEG, PNG, BMP, GIF, TIFF or AVIF; None where `data` does not
    say, and for other formats. (A WebP has no more than 16383 pixels a side.)
    """
    size = None
    if data.startswith(b"\xff\xd8"):
        frames = (content for marker, content in jpeg_segments(data) if marker in JPEG_FRAMES and len(content) >= 5)
        size = next((struct.unpack(">HH", content[1:5]) for content in frames), None)
    elif data.startswith(_PNG) and data[12:16] == b"IHDR" and len(data) >= 24:
        size = struct.unpack(">II", data[16:24])[::-1]
    elif data.startswith(b"BM") and len(data) >= 26 and struct.unpack("<I", data[14:18])[0] >= 40:
        size = struct.unpack("<ii", data[18:26])[::-1]
    elif data[:6] in (b"GIF87a", b"GIF89a") and len(data) >= 10:
        size = struct.unpack("<HH", data[6:10])[::-1]
    elif data[:4] in _TIFF:
        tags = dict(_tags(data))
        size = (tags[257], tags[256]) if {256, 257} <= set(tags) else None
    elif data[4:8] == b"ftyp":
        largest = [struct.unpack(">II", box[4:12])[::-1] for box in _boxes(data, b"ispe") if len(box) >= 12]
        size = max(largest, key=lambda hw: hw[0] * hw[1], default=None)
    return None if size is None else (abs(int(size[0])), abs(int(size[1])))


def too_large(data: bytes) -> str:
    """Why the picture `data` is refused by its size alone; '' where it is not. Nothing is decoded."""
    size = encoded_size(data)
    if size is None or size[0] * size[1] <= MAX_PIXELS:
        return ""
    return f"{size[1]}x{size[0]} (width x height) are more than {MAX_PIXELS} pixels: cut it into tiles"


def jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
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
    """The EXIF orientation 1..8 of an encoded JPEG, PNG, WebP, TIFF or AVIF: of `data`, the whole or the beginning.

    1, upright, where there is none. TIFF 6.0, tag 274: 2 mirrored, 3 turned by 180 degrees, 4 mirrored upside down,
    5 transposed, 6 to be turned clockwise, 7 transposed about the other diagonal, 8 to be turned anticlockwise.
    """
    body = b""
    if data.startswith(b"\xff\xd8"):
        segments = (content for marker, content in jpeg_segments(data) if marker == 0xE1)
        body = next((content[6:] for content in segments if content.startswith(b"Exif\0\0")), b"")
    elif data.startswith(_PNG) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        body = _chunk(data)
    elif data[:4] in (b"II*\0", b"MM\0*"):
        body = data
    elif data[4:8] == b"ftyp":
        return _avif_orientation(data)
    value = dict(_tags(body)).get(0x0112, 1)
    return value if 1 <= value <= 8 else 1


def _avif_orientation(data: bytes) -> int:
    """What the properties irot and imir of an AVIF amount to; its EXIF does not count (MIAF 7.3.9)."""
    angle = next((box[0] & 3 for box in _boxes(data, b"irot") if box), 0)  # quarter turns anticlockwise
    axis = next((box[0] & 1 for box in _boxes(data, b"imir") if box), None)
    turned = {0: 1, 1: 8, 2: 3, 3: 6}[angle]
    if axis is None:
        return turned
    # Turned first, mirrored then: 0 swaps top and bottom, 1 left and right.
    return {(1, 0): 4, (1, 1): 2, (3, 0): 2, (3, 1): 4, (6, 0): 7, (6, 1): 5, (8, 0): 5, (8, 1): 7}[turned, axis]


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


def _tags(body: bytes) -> Iterator[tuple[int, int]]:
    """(tag, value) of the whole numbers in the first directory of a TIFF, or of EXIF, which is one."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(body[:4])
    if order is None or len(body) < 8:
        return
    start = struct.unpack(order + "I", body[4:8])[0]
    if start + 2 > len(body):
        return
    for i in range(struct.unpack(order + "H", body[start : start + 2])[0]):
        entry = body[start + 2 + 12 * i : start + 14 + 12 * i]
        if len(entry) < 12:
            return
        tag, kind = struct.unpack(order + "HH", entry[:4])
        if kind == 3:
            yield tag, struct.unpack(order + "H", entry[8:10])[0]
        elif kind == 4:
            yield tag, struct.unpack(order + "I", entry[8:12])[0]


def _boxes(data: bytes, kind: bytes) -> Iterator[bytes]:
    """Contents of the properties of that kind in the header of an AVIF."""
    end = data.find(b"mdat") if b"mdat" in data else len(data)
    position = data.find(kind, 0, end)
    while position >= 4:
        yield data[position + 4 : position - 4 + int.from_bytes(data[position - 4 : position], "big")]
        position = data.find(kind, position + 4, end)


def apply_orientation(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The stored pixels [H, W, ...] as they are to be shown, by the EXIF `orientation` 1..8."""
    if orientation >= 5:
        image = cv2.transpose(image)  # type: ignore[assignment]
    turns = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}  # about which axis the rest is mirrored
    return image if orientation in (1, 5) else cv2.flip(image, turns[orientation])  # type: ignore[return-value]
