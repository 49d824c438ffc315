"""Pictures that are small files and large arrays, and pictures with holes."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.images.encoded import MAX_PIXELS, encoded_size, exif_orientation
from runtime.images.image import ImageError, decode_image, read_image


def _scene(height: int = 320, width: int = 400) -> np.ndarray:
    """Something with detail everywhere, as a photograph has."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def _encoded(suffix: str, image: np.ndarray, *options: int) -> bytes:
    done, data = cv2.imencode(suffix, image, list(options))
    assert done
    return data.tobytes()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tiff"])
def test_the_header_says_how_many_pixels(suffix: str) -> None:
    image = _scene(36, 52)
    assert encoded_size(_encoded(suffix, image)) == (36, 52)
    for cut in range(40):
        encoded_size(_encoded(suffix, image)[:cut])  # no error of its own: the reader says what is wrong
        exif_orientation(_encoded(suffix, image)[:cut])


def _bomb(side: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress(bytes(16), 9)  # nothing of it is decoded
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_bomb_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(_bomb(30_000))

    def decoded(*_: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(cv2, "imdecode", decoded)
    with pytest.raises(ImageError, match=f"bomb.png: 30000x30000 .* are more than {MAX_PIXELS} pixels"):
        read_image(path)


@pytest.mark.parametrize("name", ["a\0b.png", "\ud800.png", "x" * 300 + ".png"])
def test_names_that_no_file_can_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        read_image(tmp_path / name)


def _with_hole(data: bytes, start: int, length: int) -> bytes:
    return data[:start] + bytes(length) + data[start + length :]


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
@pytest.mark.parametrize("place", [0.3, 0.5, 0.8])
def test_a_hole_of_zeros_is_told(suffix: str, place: float) -> None:
    whole = _encoded(suffix, _scene())
    decode_image(whole, "whole")
    with pytest.raises(ImageError, match="a: corrupt .*zeros stand where its pixels were"):
        decode_image(_with_hole(whole, int(len(whole) * place), 1024), "a")


def test_the_second_half_of_a_webp_that_is_zeros_is_told() -> None:
    for options in ((), (cv2.IMWRITE_WEBP_QUALITY, 101)):
        whole = _encoded(".webp", _scene(), *options)
        half = len(whole) // 2
        with pytest.raises(ImageError, match="a: corrupt WebP"):
            decode_image(_with_hole(whole, half, len(whole) - half), "a")


@pytest.mark.parametrize("value", [0, 1, 114, 128, 255])
@pytest.mark.parametrize("optimized", [0, 1])
@pytest.mark.parametrize("progressive", [0, 1])
def test_flat_pictures_and_padded_files_have_no_hole(value: int, optimized: int, progressive: int) -> None:
    """Their coded pixels may be all zeros, and so is what some programs leave behind a picture."""
    flat = np.full((1200, 1600, 3), value, np.uint8)
    options = (cv2.IMWRITE_JPEG_OPTIMIZE, optimized, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive)
    for image in (flat, flat[..., 0], np.vstack([flat, _scene(400, 1600)])):
        data = _encoded(".jpg", image, *options)
        decode_image(data, "a")
        decode_image(data + bytes(4096), "a")
        for quality in (50, 101):
            decode_image(_encoded(".webp", image, cv2.IMWRITE_WEBP_QUALITY, quality), "a")
