"""Pictures are refused by their header where they are too large, and turned as header and every other reader say."""

from __future__ import annotations

import io
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageOps, features

from runtime.images.encoded import MAX_PIXELS, apply_orientation, encoded_size, exif_orientation
from runtime.images.image import ImageError, decode_image, read_image


def encoded(kind: str, pixels: np.ndarray, orientation: int = 1) -> bytes:
    exif, buffer = Pillow.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    more = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind in ("JPEG", "AVIF") else {}
    if kind not in ("BMP", "GIF"):
        more["exif"] = exif
    Pillow.fromarray(pixels).save(buffer, kind, **more)
    return buffer.getvalue()


def png_header(height: int, width: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, row = zlib.compressobj(9), b"\0" * (1 + width // 8)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(20000, 20000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError, match=r"bomb\.png: 20000x20000 \(width x height\) are more than 268435456 pixels"):
        read_image(tmp_path / "bomb.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "AVIF"])
def test_sizes_are_read_from_headers_and_a_header_that_lies_is_refused(kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    data = encoded(kind, np.zeros((30, 50, 3), np.uint8))
    assert encoded_size(data) == (30, 50)
    assert encoded_size(data[:8]) is None
    sides = {
        "JPEG": (struct.pack(">HH", 30, 50), struct.pack(">HH", 65000, 65000)),
        "PNG": (struct.pack(">II", 50, 30), struct.pack(">II", 1 << 20, 1 << 20)),
        "BMP": (struct.pack("<ii", 50, 30), struct.pack("<ii", 1 << 20, -(1 << 20))),
        "GIF": (struct.pack("<HH", 50, 30), struct.pack("<HH", 65000, 65000)),
        "TIFF": (struct.pack("<HHI", 256, 4, 1) + struct.pack("<I", 50), struct.pack("<HHII", 256, 4, 1, 1 << 30)),
        "AVIF": (struct.pack(">II", 50, 30), struct.pack(">II", 1 << 20, 1 << 20)),
    }[kind]  # fmt: skip
    assert sides[0] in data
    with pytest.raises(ImageError, match=f"are more than {MAX_PIXELS} pixels"):
        decode_image(data.replace(sides[0], sides[1], 1), "x")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_turned_as_pillow_turns_them(kind: str, orientation: int) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    y, x = np.mgrid[0:40, 0:60]
    pixels = np.stack([x * 4, y * 6, 255 - x * 4], -1).astype(np.uint8)
    forms = [encoded(kind, pixels, orientation)]
    if kind == "WEBP":
        forms.append(with_prefixed_exif(forms[0]))
    transposed = Pillow.open(io.BytesIO(encoded("PNG", pixels, orientation)))
    meant = np.asarray(ImageOps.exif_transpose(transposed))
    for data in forms:
        try:
            seen = decode_image(data, "x")[..., ::-1]
        except ImageError:
            assert kind == "AVIF"
            pytest.skip("this OpenCV reads no AVIF")
        assert exif_orientation(data) == orientation and seen.shape == meant.shape
        assert np.abs(seen.astype(int) - meant).mean() < 6


def with_prefixed_exif(data: bytes) -> bytes:
    """Some writers begin the chunk as JPEG's segment begins."""
    at = data.index(b"EXIF")
    length = struct.unpack("<I", data[at + 4 : at + 8])[0]
    body = b"Exif\0\0" + data[at + 8 : at + 8 + length]
    chunk = b"EXIF" + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
    out = data[:at] + chunk + data[at + 8 + length + length % 2 :]
    return out[:4] + struct.pack("<I", len(out) - 8) + out[8:]


def test_orientation_is_a_turn_of_the_array() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert (apply_orientation(image, 6) == np.rot90(image, -1)).all()
    assert (apply_orientation(image, 8) == np.rot90(image)).all()
    assert (apply_orientation(image, 3) == np.rot90(image, 2)).all()
    assert (apply_orientation(image, 5) == image.transpose(1, 0, 2)).all()
