"""Formats with their size in the first bytes: PNG, WebP, BMP, GIF, the portable maps, Sun raster, Radiance."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

from runtime.images.formats.zeros import HOLE, ZEROS

# As OpenCV reads them: one white space ends a number, comments may follow.
_PORTABLE = re.compile(rb"P[1-6]\s(?:\s|#[^\r\n]*[\r\n])*(\d{1,10})\s(?:\s|#[^\r\n]*[\r\n])*(\d{1,10})\s")
_PORTABLE_FLOAT = re.compile(rb"P[Ff]\s+(\d{1,10})\s+(\d{1,10})\s")
_PORTABLE_ANY = re.compile(rb"P7\s.*?^[ \t]*ENDHDR\s", re.DOTALL | re.MULTILINE)
_RADIANCE = re.compile(rb"\n-Y\s+(\d{1,10})\s+\+X\s+(\d{1,10})\s")


def png_size(data: bytes) -> tuple[int, int] | None:
    """Height and width."""
    return struct.unpack(">II", data[16:24])[::-1] if data[12:16] == b"IHDR" and len(data) >= 24 else None


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the content of each chunk of a PNG or a WebP; an end may lie beyond `data`."""
    png = data.startswith(b"\x89PNG")
    position = 8 if png else 12
    while position + 8 <= len(data):
        first, second, start = data[position : position + 4], data[position + 4 : position + 8], position + 8
        kind, length = (second, int.from_bytes(first, "big")) if png else (first, int.from_bytes(second, "little"))
        yield kind, start, start + length
        position = start + length + (4 if png else length % 2)  # a checksum, or a byte that makes the length even


def png_damage(data: bytes) -> str:
    """What is wrong with the chunks of a PNG: one is missing or has a wrong checksum; '' for nothing."""
    for kind, start, end in _chunks(data):
        if end + 4 > len(data):
            break
        if zlib.crc32(data[start - 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return f"corrupt PNG: the checksum of its {kind.decode('latin-1')} chunk is wrong"
        if kind == b"IEND":
            return ""
    return "truncated PNG: it ends before its IEND chunk"


def exif_chunk(data: bytes) -> bytes:
    """The EXIF of a PNG or a WebP, which is a TIFF; empty where there is none."""
    content = next((data[start:end] for kind, start, end in _chunks(data) if kind in (b"eXIf", b"EXIF")), b"")
    return content.removeprefix(b"Exif\0\0")  # as some writers begin it


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Height and width; of a WebP with several chunks, those of its canvas."""
    kind, head = data[12:16], data[20:30]
    if len(head) < 10:
        return None
    if kind == b"VP8X":
        return int.from_bytes(head[7:10], "little") + 1, int.from_bytes(head[4:7], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", head[6:10])
        return height & 0x3FFF, width & 0x3FFF
    return None


def webp_damage(data: bytes) -> str:
    """What is missing of a WebP: its end, or pixels, with zeros in their place; '' where no damage is visible."""
    if len(data) < 8 + int.from_bytes(data[4:8], "little"):
        return "truncated WebP: it is shorter than its header says"
    pixels = ((start, end) for kind, start, end in _chunks(data) if kind in (b"VP8 ", b"VP8L"))
    return f"corrupt WebP: {HOLE}" if any(data.find(ZEROS, start, end) >= 0 for start, end in pixels) else ""


def bmp_size(data: bytes) -> tuple[int, int] | None:
    """Height and width; the height of a BMP that begins at its top is negative there."""
    if len(data) < 26:
        return None
    header = struct.unpack("<I", data[14:18])[0]
    if header == 12:  # OS/2
        width, height = struct.unpack("<HH", data[18:22])
    elif header >= 36:
        width, height = struct.unpack("<ii", data[18:26])
    else:
        return None
    return abs(height), abs(width)


def bmp_damage(data: bytes) -> str:
    """'' where a BMP has all its pixels, even if its header has another length of the file."""
    size = bmp_size(data)
    if size is None or len(data) < 34:
        return ""
    old = struct.unpack("<I", data[14:18])[0] == 12
    bits = struct.unpack("<H", data[24:26] if old else data[28:30])[0]
    packed = 0 if old else struct.unpack("<I", data[30:34])[0]
    if packed in (1, 2):  # run lengths
        length = struct.unpack("<I", data[2:6])[0]
        return "truncated BMP: it is shorter than its header says" if len(data) < length else ""
    first = struct.unpack("<I", data[10:14])[0]
    row = (size[1] * bits + 31) // 32 * 4
    return "truncated BMP: its pixels go on beyond its end" if first + row * size[0] > len(data) else ""


def gif_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of the screen that the frames lie on."""
    return struct.unpack("<HH", data[6:10])[::-1] if len(data) >= 10 else None


def portable_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a PBM, PGM, PPM, PAM or PFM."""
    if header := _PORTABLE_ANY.match(data):
        sides = [[int(n) for n in re.findall(side + rb"\s+(\d{1,10})", header[0])] for side in (b"HEIGHT", b"WIDTH")]
        return (max(sides[0]), max(sides[1])) if all(sides) else None
    size = _PORTABLE.match(data) or _PORTABLE_FLOAT.match(data)
    return (int(size[2]), int(size[1])) if size else None


def sun_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a Sun raster."""
    return struct.unpack(">II", data[4:12])[::-1] if len(data) >= 12 else None


def radiance_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a Radiance picture, from the line after the first empty line."""
    size = _RADIANCE.match(data, data.find(b"\n\n") + 1)
    return (int(size[1]), int(size[2])) if size else None
