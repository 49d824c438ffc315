"""JPEG (ITU-T T.81): its segments and scans, its size, and the parts that are visibly missing."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from itertools import product, takewhile
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.images.formats.zeros import HOLE, ZEROS

_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF: the segments that hold the size
_SEQUENTIAL, _PROGRESSIVE = {0xC0, 0xC1, 0xC9}, {0xC2, 0xCA}
_HUFFMAN = {0xC0, 0xC1}
_DHT, _EOI, _SOS, _DRI = 0xC4, 0xD9, 0xDA, 0xDD
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")  # not a stuffed 0xFF of the pixels, not a restart marker
_COEFFICIENTS = (1 << 64) - 1
_FEWEST_GRAY = 8
"""Blocks (MCUs) at the end that must be gray before a picture is suspected."""
_FEWEST_BITS, _MOST_BITS = 2, 321
"""The bits that an MCU without any detail can have: 1 to 10 blocks of two Huffman codes, of 1 to 16 bits each."""


class Segment(NamedTuple):
    """A segment: its marker and content. The pixels of a scan follow `end`."""

    marker: int
    content: bytes
    start: int
    end: int


def segments(data: bytes) -> Iterator[Segment]:
    """The segments of the first picture, through all its scans.

    Lengths are followed: a search for markers alone would take those of a thumbnail in EXIF for the picture's.
    """
    position = 2
    while match := _MARKER.search(data, position):
        marker, end = match[1][0], match.end()
        if marker not in (0x01, 0xD8, _EOI):  # these have no length
            end += max(2, int.from_bytes(data[end : end + 2], "big"))
        yield Segment(marker, data[match.end() + 2 : end], match.start(), end)
        if marker == _EOI:
            return
        position = end


def header(data: bytes) -> Iterator[Segment]:
    """The segments before the pixels."""
    for segment in segments(data):
        if segment.marker == _SOS:
            return
        yield segment


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width."""
    frames = (s.content for s in header(data) if s.marker in _FRAMES and len(s.content) >= 5)
    return next((struct.unpack(">HH", content[1:5]) for content in frames), None)


def jpeg_exif(data: bytes) -> bytes:
    """The body of the EXIF segment, which is a TIFF; empty where there is none."""
    contents = (s.content for s in header(data) if s.marker == 0xE1)
    return next((content[6:] for content in contents if content.startswith(b"Exif\0\0")), b"")


def jpeg_damage(data: bytes) -> str:
    """What is missing: the end, a scan, or pixels, with zeros in their place; '' where no damage is visible.

    A sequential picture that was truncated in its last scan and given a new end shows in its pixels: `jpeg_gray_end`.
    """
    zeros = data.find(ZEROS) >= 0
    missing: dict[int, int] = {}  # by component: a bit for each coefficient that is not complete yet
    first_words: dict[int, int] = {}
    frame, pixels, hole = 0, 0, False
    for segment in segments(data):
        marker, content = segment.marker, segment.content
        if zeros and pixels:
            hole = hole or data.find(ZEROS, pixels, segment.start) >= 0
        pixels = 0
        if marker in _FRAMES and len(content) > 5:
            frame, components = marker, content[6 : 6 + 3 * content[5] : 3]
            # Some encoders leave out the details of colors. The first component, lightness, must be complete.
            missing = {c: 1 if i else _COEFFICIENTS for i, c in enumerate(components)}
        elif marker == _DHT:
            first_words |= _first_words(content)
        elif marker == _SOS and content and len(content) >= 4 + 2 * content[0]:
            components, tables = content[1 : 1 + 2 * content[0] : 2], content[2 : 2 + 2 * content[0] : 2]
            first, last, precision = content[1 + 2 * content[0] :][:3]
            if frame not in _PROGRESSIVE:
                first, last, precision = 0, 63, 0
            band = _COEFFICIENTS >> (63 - last) & -(1 << first) if last < 64 else 0
            for component in components:
                bits = missing.get(component, 0)
                missing[component] = bits | band if precision & 15 else bits & ~band
            if frame in _SEQUENTIAL and not zeros and not any(missing.values()) and data.endswith(b"\xff\xd9"):
                return ""  # the pixels cannot contain these two bytes, so this is the end
            words = [_first_word(frame, first, precision, table, first_words) for table in tables]
            pixels = segment.end if any(word & 15 for word in words) else 0
        elif marker == _EOI:
            if frame in _SEQUENTIAL | _PROGRESSIVE and any(missing.values()):
                return "truncated JPEG: it ends before its last scan"
            return f"corrupt JPEG: {HOLE}" if hole else ""
    return "truncated JPEG: it ends before its end-of-image marker"


def jpeg_gray_end(data: bytes, image: NDArray[np.uint8]) -> str:
    """Whether a sequential picture, decoded to `image` (uint8 [H, W, 3], as stored), ends before its pixels do.

    Decoders fill the blocks that are missing with zeros, which is gray 128. An encoder that was given such gray writes
    the same few bits for each block. So a picture that ends gray, with a scan that does not end in repeated bits, was
    cut. Not found: less than `_FEWEST_GRAY` blocks, a cut behind a flat area, and scans with restart markers.
    """
    frame = next((s for s in header(data) if s.marker in _FRAMES and len(s.content) > 5), None)
    if (
        frame is None
        or frame.marker not in _HUFFMAN
        or frame.content[5] not in (1, 3)
        or not (image[-1, -1] == 128).all()
    ):
        return ""
    sampling = frame.content[7::3] if frame.content[5] == 3 else b"\x11"
    side_h, side_w = 8 * max(byte & 15 for byte in sampling), 8 * max(byte >> 4 for byte in sampling)
    H, W = image.shape[:2]
    corners = product(reversed(range(0, H, side_h)), reversed(range(0, W, side_w)))
    blocks = (image[y : y + side_h, x : x + side_w] for y, x in corners)
    count = sum(1 for _ in takewhile(lambda block: (block == 128).all(), blocks))
    *_, scan, end = segments(data)
    if count < _FEWEST_GRAY or scan.marker != _SOS or end.marker != _EOI or any(s.marker == _DRI for s in header(data)):
        return ""
    tail = data[max(scan.end, end.start - 512) : end.start].replace(b"\xff\0", b"\xff")
    bits = "".join(f"{byte:08b}" for byte in tail[:-1])  # the last byte is filled up with ones
    for period in range(_FEWEST_BITS, _MOST_BITS):
        repeated = bits[-(count - 2) * period :]
        if repeated[period:] == repeated[:-period]:
            return ""
    return f"truncated JPEG: its last {count} blocks are missing"


def _first_word(frame: int, first: int, precision: int, table: int, first_words: dict[int, int]) -> int:
    """The meaning of zeros in a component's part of a scan: the low four bits count the bits of a coefficient.

    0 is "nothing more in this block", which flat pictures repeat. Scans in which zeros may mean anything have 0, too.
    """
    if frame in _SEQUENTIAL:
        return first_words.get(0x10 | table & 15, 0)
    if frame not in _PROGRESSIVE or precision >> 4:  # a refinement has bits without a code
        return 0
    return first_words.get(table >> 4 if first == 0 else 0x10 | table & 15, 0)


def _first_words(content: bytes) -> dict[int, int]:
    """The meaning of the all-zero word in each Huffman table of a DHT segment, by the table's class and number."""
    words, position = {}, 0
    while position + 17 < len(content):
        words[content[position]] = content[position + 17]
        position += 17 + sum(content[position + 1 : position + 17])
    return words
