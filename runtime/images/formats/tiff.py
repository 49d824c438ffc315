"""TIFF 6.0 and BigTIFF: the first directory, the size of its picture, and whether its strips or tiles are complete.

EXIF is a TIFF without pixels.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection

from runtime.images.formats.zeros import HOLE, ZEROS

_WIDTH, _HEIGHT, _COMPRESSION, _ORIENTATION = 256, 257, 259, 274
_STRIPS, _TILES = (273, 279), (324, 325)  # where each begins, and how many bytes it has
_WHOLE_NUMBERS = {1: "B", 6: "b", 3: "H", 8: "h", 4: "I", 9: "i", 16: "Q", 17: "q"}
_NO_ZEROS = (4, 5)  # fax group 4 has no code of zeros, and LZW never repeats one
_DEFLATE = (8, 32946)


def directory(data: bytes, tags: Collection[int]) -> dict[int, tuple[int, ...]]:
    """The whole numbers of `tags` in the first directory, as far as `data` has them."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 16:
        return {}
    big = struct.unpack(order + "H", data[2:4])[0] == 43
    number, count_format, room = ("Q", "Q", 8) if big else ("I", "H", 4)
    start = struct.unpack(order + number, data[8:16] if big else data[4:8])[0]
    position = start + struct.calcsize(order + count_format)
    if position > len(data):
        return {}
    entry = struct.Struct(order + "HH" + number)
    values: dict[int, tuple[int, ...]] = {}
    for _ in range(struct.unpack(order + count_format, data[start:position])[0]):
        if position + entry.size + room > len(data):
            break
        tag, kind, count = entry.unpack_from(data, position)
        place = position + entry.size
        position = place + room
        if tag not in tags or tag in values or kind not in _WHOLE_NUMBERS:  # libtiff takes the first of equal tags
            continue
        item = struct.calcsize(order + _WHOLE_NUMBERS[kind])
        if count * item > room:
            place = struct.unpack(order + number, data[place : place + room])[0]
        count = max(0, min(count, (len(data) - place) // item))
        values[tag] = struct.unpack_from(f"{order}{count}{_WHOLE_NUMBERS[kind]}", data, place) if count else ()
    return values


def tiff_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of the stored pixels."""
    values = directory(data, (_WIDTH, _HEIGHT))
    height, width = values.get(_HEIGHT), values.get(_WIDTH)
    return (height[0], width[0]) if height and width else None


def tiff_orientation(data: bytes) -> int:
    """The orientation tag of a TIFF, or of EXIF; 1 where it is missing."""
    return (directory(data, (_ORIENTATION,)).get(_ORIENTATION) or (1,))[0]


def tiff_damage(data: bytes) -> str:
    """What is missing: the directory, the end of a strip or tile, or pixels, with zeros in their place; '' for nothing.

    In a TIFF without compression no damage is visible; libtiff itself refuses truncated ones.
    """
    if tiff_size(data) is None:
        return "truncated TIFF: it ends before its directory, or the directory has no size"
    values = directory(data, (_COMPRESSION, *_STRIPS, *_TILES))
    compression = (values.get(_COMPRESSION) or (1,))[0]
    starts, counts = (values.get(s) or values.get(t) or () for s, t in zip(_STRIPS, _TILES, strict=True))
    for start, count in zip(starts, counts, strict=False) if compression != 1 else ():
        if start + count > len(data):
            return "truncated TIFF: its pixels go on beyond its end"
        if compression not in _NO_ZEROS + _DEFLATE or data.find(ZEROS, start, start + count) < 0:
            continue
        if compression in _NO_ZEROS or not _inflates(data[start : start + count]):
            return f"corrupt TIFF: {HOLE}"
    return ""


def _inflates(stream: bytes) -> bool:
    """Whether zlib reads `stream` without an error. A piece at a time: it may be small and unpack to much."""
    inflater = zlib.decompressobj()
    try:
        while stream and not inflater.eof:
            inflater.decompress(stream, 1 << 20)
            stream = inflater.unconsumed_tail
    except zlib.error:
        return False
    return True
