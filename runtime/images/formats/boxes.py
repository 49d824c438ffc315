"""Formats made of boxes: HEIC and AVIF (ISO/IEC 23008-12), and JPEG 2000 (ISO/IEC 15444-1), also without boxes."""

from __future__ import annotations

import struct
from collections.abc import Iterator

HEIC_ADVICE = (
    "convert it to JPEG (heif-convert IN.heic OUT.jpg, or Python's pillow-heif); "
    "iPhones write JPEG with Settings > Camera > Formats > Most Compatible"
)
_HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"mif2", b"msf1", b"heif"}
_AVIF = {b"avif", b"avis"}
_CODESTREAM = b"\xff\x4f\xff\x51"  # SOC, and SIZ, which must follow it


def heif_kind(head: bytes) -> str:
    """'AVIF', or 'HEIC' for HEIF of other codecs, of a file that begins with `head` (256 bytes); '' for other files."""
    if head[4:8] != b"ftyp":
        return ""
    brands = {head[i : i + 4] for i in (8, *range(16, min(len(head), int.from_bytes(head[:4], "big")) - 3, 4))}
    if _AVIF & brands:
        return "AVIF"
    return "HEIC" if head[8:12] in _HEIF else ""  # a video may be compatible with them


def avif_size(data: bytes) -> tuple[int, int] | None:
    """Height and width: of the largest picture in the file, which is the grid where there are tiles."""
    sizes = [struct.unpack(">II", box[4:12])[::-1] for box in _properties(data, b"ispe") if len(box) >= 12]
    return max(sizes, key=lambda hw: hw[0] * hw[1], default=None)


def avif_orientation(data: bytes) -> int:
    """The EXIF orientation that equals the properties irot and imir; EXIF itself does not count (MIAF 7.3.9)."""
    angle = next((box[0] & 3 for box in _properties(data, b"irot") if box), 0)  # quarter turns anticlockwise
    axis = next((box[0] & 1 for box in _properties(data, b"imir") if box), None)
    turned = {0: 1, 1: 8, 2: 3, 3: 6}[angle]
    if axis is None:
        return turned
    # First turned, then mirrored: 0 swaps top and bottom, 1 left and right.
    return {(1, 0): 4, (1, 1): 2, (3, 0): 2, (3, 1): 4, (6, 0): 7, (6, 1): 5, (8, 0): 5, (8, 1): 7}[turned, axis]


def _properties(data: bytes, kind: bytes) -> Iterator[bytes]:
    """Contents of the properties of that kind in the header."""
    end = data.find(b"mdat") if b"mdat" in data else len(data)
    position = data.find(kind, 0, end)
    while position >= 4:
        yield data[position + 4 : position - 4 + int.from_bytes(data[position - 4 : position], "big")]
        position = data.find(kind, position + 4, end)


def jpeg2000_size(data: bytes) -> tuple[int, int] | None:
    """Height and width, from the codestream: decoders ignore the box that also holds them."""
    position = 0
    while position + 24 <= len(data) and data[position : position + 4] != _CODESTREAM:
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        content = position + 8
        if length == 1:
            length, content = int.from_bytes(data[content : content + 8], "big"), content + 8
        if length < 8 and kind != b"jp2c":
            return None
        position = content if kind == b"jp2c" else position + length
    if position + 24 > len(data):
        return None
    right, bottom, left, top = struct.unpack(">4I", data[position + 8 : position + 24])
    return bottom - top, right - left
