"""Size and orientation of picture files, and the rule by which boxes turn with a turned picture."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageOps, features

from runtime.datasets.annotations import Row, make_record
from runtime.datasets.orientation import oriented, rotate_boxes
from runtime.images.encoded import exif_orientation
from runtime.images.image import ImageError, decode_image, read_image
from runtime.images.image_header import image_size

KINDS = ["JPEG", "PNG", "WEBP", "TIFF", "BMP"]


def saved(path: Path, kind: str, pixels: np.ndarray, orientation: int = 1) -> Path:
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    options = {"BMP": {}, "WEBP": {"exif": exif, "lossless": True}}.get(kind, {"exif": exif, "quality": 95})
    Pillow.fromarray(pixels).save(path, kind, **options)
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_size_and_orientation_are_those_of_the_picture_as_read(tmp_path: Path, kind: str, orientation: int) -> None:
    orientation = 1 if kind == "BMP" else orientation
    path = saved(tmp_path / "a", kind, np.zeros((30, 50, 3), np.uint8), orientation)
    assert image_size(path) == read_image(path).shape[:2] == ((50, 30) if orientation == 6 else (30, 50))
    assert exif_orientation(path.read_bytes()) == orientation


def with_prefixed_exif(data: bytes) -> bytes:
    """A WebP whose chunk of EXIF begins as JPEG's segment does, as some writers begin it."""
    at = data.index(b"EXIF")
    content = b"Exif\0\0" + data[at + 8 :]
    chunks = data[12:at] + b"EXIF" + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "WEBP of a JPEG's prefix", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_turned_as_pillow_turns_them(tmp_path: Path, kind: str, orientation: int) -> None:
    """By every OpenCV alike: before 4.13 it turned no WebP, and later none whose EXIF begins as a JPEG's does."""
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    y, x = np.mgrid[0:40, 0:60]
    pixels = np.stack([x * 4, y * 6, 255 - x * 4], -1).astype(np.uint8)
    path = saved(tmp_path / "a.picture", kind.split()[0], pixels, orientation)
    if kind.startswith("WEBP of"):
        path.write_bytes(with_prefixed_exif(path.read_bytes()))
    with Pillow.open(saved(tmp_path / "meant", "PNG", pixels, orientation)) as picture:
        meant = np.asarray(ImageOps.exif_transpose(picture))
    try:
        seen = read_image(path)
    except ImageError:
        assert kind == "AVIF"
        pytest.skip("this OpenCV reads no AVIF")
    assert exif_orientation(path.read_bytes()) == orientation and seen.shape == meant.shape
    assert np.abs(seen[..., ::-1].astype(int) - meant).mean() <= (6 if kind in ("JPEG", "AVIF") else 0)
    assert kind != "JPEG" or (seen == cv2.imread(str(path))).all()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xff\xd8", b"\xff\xd8\xff\xe1\x00", b"\x89PNG\r\n\x1a\n\0\0", b"II*\0\xff\xff\xff\xff",
        b"RIFF\0\0\0\0WEBPEXIF\xff\xff",
    ],
)  # fmt: skip
def test_headers_that_are_cut_short(tmp_path: Path, data: bytes) -> None:
    assert exif_orientation(data) == 1
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ImageError):
        image_size(tmp_path / "a")


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_turn_as_the_pixels_do(tmp_path: Path, orientation: int) -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[4:12, 10:30] = 255
    path = saved(tmp_path / "a.png", "PNG", pixels, orientation)
    rows, columns = np.nonzero(read_image(path)[..., 0])
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    stored = make_record(1, path, 40, 60, [Row((10, 4, 30, 12), 0, False, 160)])
    turned = oriented(stored, (60, 40))
    assert turned.boxes_xyxy.tolist() == [seen] and (turned.height, turned.width) == (60, 40)
    assert rotate_boxes(np.zeros((0, 4), np.float32), (40, 60), orientation).shape == (0, 4)


def test_sizes_that_no_orientation_explains_are_errors(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", "PNG", np.zeros((60, 40, 3), np.uint8))
    record = make_record(1, path, 40, 60, [])
    assert oriented(record, (40, 60)) is record
    with pytest.raises(ImageError, match=r"is 40x60 but its annotation says 60x40 .* no EXIF orientation"):
        oriented(record, (60, 40))
    with pytest.raises(ImageError, match=r"is 7x5 but its annotation says 60x40 \(width x height\)$"):
        oriented(record, (5, 7))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_keep_their_high_byte(kind: str, channels: int) -> None:
    deep = (np.arange(24 * channels, dtype=np.uint16) * 900 + 200).reshape(4, 6, channels)
    data = cv2.imencode(f".{kind.lower()}", deep)[1].tobytes()
    assert (decode_image(data, "x") == np.broadcast_to(deep >> 8, (4, 6, 3))).all()


def test_cmyk_palette_and_float_pictures(tmp_path: Path) -> None:
    red = Pillow.new("RGB", (24, 16), (200, 100, 50))
    buffer = io.BytesIO()
    red.convert("CMYK").save(buffer, "JPEG", quality=95)
    assert np.abs(decode_image(buffer.getvalue(), "x").astype(int) - (50, 100, 200)).max() <= 3
    red.convert("P", palette=Pillow.Palette.ADAPTIVE).save(tmp_path / "p.png")
    assert np.abs(read_image(tmp_path / "p.png").astype(int) - (50, 100, 200)).max() <= 3
    with pytest.raises(ImageError, match="float32 samples; expected 8 or 16 bits"):
        decode_image(cv2.imencode(".tiff", np.ones((4, 6, 3), np.float32))[1].tobytes(), "x")
