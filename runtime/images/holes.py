"""Holes in encoded pictures: zeros where a file system lost blocks. OpenCV shows something in their place.

Compressed pixels hold no long runs of zeros, with one exception: a code whose all-zero word means "nothing more in this
block", as some flat pictures have. There nothing is said. What cannot be told without decoding is not told either: a
JPEG whose end was cut off and marked as an end again, holes in TIFF and BMP, damage of other kinds.
"""

from __future__ import annotations

_BLOCK = bytes(512)  # the least that a disk loses


def webp_has_hole(data: bytes) -> bool:
    """Whether the pixels of the WebP file `data` have a hole."""
    position = 12
    while position + 8 <= len(data):
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        start, end = position + 8, position + 8 + length
        if data[position : position + 4] in (b"VP8 ", b"VP8L") and data.find(_BLOCK, start, end) >= 0:
            return True
        position = end + length % 2
    return False


def jpeg_has_hole(data: bytes) -> bool:
    """Whether the pixels of the sequential JPEG file `data` have a hole; False for a progressive one."""
    if data.find(_BLOCK) < 0:
        return False
    position, sequential = 2, False
    first_words: dict[int, int] = {}
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8:
            position += 1 if marker == 0xFF else 2
            continue
        end = position + 2 + max(2, int.from_bytes(data[position + 2 : position + 4], "big"))
        segment = data[position + 4 : end]
        sequential = sequential or marker in (0xC0, 0xC1)
        if marker == 0xC4:
            first_words |= _first_words(segment)
        if marker == 0xDA:
            pixels = data.find(b"\xff\xd9", end)
            hole = data.find(_BLOCK, end, pixels if pixels >= 0 else len(data)) >= 0
            return sequential and hole and _ends_no_block(segment, first_words)
        position = end
    return False


def _first_words(segment: bytes) -> dict[int, int]:
    """What the all-zero word of each Huffman table means, of the tables of AC coefficients in a DHT segment."""
    found, position = {}, 0
    while position + 17 < len(segment):
        kind, count = segment[position], sum(segment[position + 1 : position + 17])
        if kind >> 4 == 1:
            found[kind & 15] = segment[position + 17]
        position += 17 + count
    return found


def _ends_no_block(scan: bytes, first_words: dict[int, int]) -> bool:
    """Whether zeros mean coefficients, and not ends of blocks, for a component of a scan: such a run is no picture."""
    tables = [scan[2 + 2 * i] & 15 for i in range(scan[0]) if 2 + 2 * i < len(scan)] if scan else []
    return any(first_words.get(table, 0) & 15 for table in tables)
