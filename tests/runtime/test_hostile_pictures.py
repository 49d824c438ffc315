"""Pictures that are small files and large arrays, and pictures that are cut or have holes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow

from runtime.images.encoded import MAX_PIXELS
from runtime.images.image import ImageError, decode_image, read_image
from tests.runtime.test_picture_formats import opencv, pillow


def _scene(height: int = 320, width: int = 400) -> np.ndarray:
    """Something with detail everywhere, as a photograph has."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


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
    whole = opencv(suffix)(_scene())
    decode_image(whole, "whole")
    with pytest.raises(ImageError, match="a: corrupt .*zeros stand where its pixels were"):
        decode_image(_with_hole(whole, int(len(whole) * place), 1024), "a")


def test_the_second_half_of_a_webp_that_is_zeros_is_told() -> None:
    for options in ((), (cv2.IMWRITE_WEBP_QUALITY, 101)):
        whole = opencv(".webp", *options)(_scene())
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
        data = opencv(".jpg", *options)(image)
        decode_image(data, "a")
        decode_image(data + bytes(4096), "a")
        for quality in (50, 101):
            decode_image(opencv(".webp", cv2.IMWRITE_WEBP_QUALITY, quality)(image), "a")


def _pillow(kind: str, image: np.ndarray, mode: str = "RGB", **options: Any) -> bytes:
    return pillow(kind, mode, **options)(image)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("place", [0.2, 0.4, 0.6, 0.8, 0.95])
def test_a_progressive_jpeg_that_was_cut_and_ended_anew_is_told(mode: str, place: float) -> None:
    """A scan is missing, or the later bits of one."""
    data = _pillow("JPEG", _scene(), mode, progressive=True, quality=90)
    decode_image(data, "a")
    last = data.rindex(b"\xff\xda")
    for cut in (data[: int(last * place)], data[:last]):
        with pytest.raises(ImageError, match="a: truncated JPEG: it ends before its last scan"):
            decode_image(cut + b"\xff\xd9", "a")
        with pytest.raises(ImageError, match="a: truncated JPEG"):
            decode_image(cut, "a")


@pytest.mark.parametrize(("mode", "options"), [("L", {}), *(("RGB", {"subsampling": s}) for s in (0, 1, 2))])
@pytest.mark.parametrize("quality", [40, 90, 100])
def test_a_sequential_jpeg_that_was_cut_and_ended_anew_is_told(
    mode: str, options: dict[str, int], quality: int
) -> None:
    """Decoders put gray in the place of what is missing. Gray that was drawn is read."""
    scene = _scene()
    data = _pillow("JPEG", scene, mode, quality=quality, **options)
    decode_image(data, "a")
    for place in (0.3, 0.5, 0.7, 0.9):
        with pytest.raises(ImageError, match="a: truncated JPEG: its last .* blocks are missing"):
            decode_image(data[: int(len(data) * place)].rstrip(b"\xff") + b"\xff\xd9", "a")
    for rows in (8, 33, 200, len(scene)):
        for optimize in (False, True):
            bordered = scene.copy()
            bordered[-rows:] = 128
            decode_image(_pillow("JPEG", bordered, mode, quality=quality, optimize=optimize, **options), "a")


def test_a_hole_in_a_scan_of_a_progressive_jpeg_is_told() -> None:
    data = _pillow("JPEG", _scene(), progressive=True, quality=90)
    scans = [i for i in range(len(data)) if data.startswith(b"\xff\xda", i)]
    start, end = max(zip(scans, scans[1:], strict=False), key=lambda scan: scan[1] - scan[0])  # Y's details
    with pytest.raises(ImageError, match="a: corrupt JPEG: zeros stand"):
        decode_image(_with_hole(data, (start + end) // 2 - 512, 1024), "a")


def _one_scan_each(*planes: np.ndarray) -> bytes:
    """A sequential JPEG whose components have scans and tables of their own, from pictures of one component."""
    parts = [_pillow("JPEG", np.repeat(p[..., None], 3, 2), "L", optimize=True, quality=90) for p in planes]
    first = parts[0]
    frame = first.index(b"\xff\xc0")
    size, tables = first[frame + 4 : frame + 9], first[2:frame]
    components = b"".join(bytes([i + 1, 0x11, 0]) for i in range(len(parts)))
    data = (
        b"\xff\xd8" + tables + struct.pack(">HH", 0xFFC0, 8 + len(components)) + size + bytes([len(parts)]) + components
    )
    for i, part in enumerate(parts):
        scan = part.index(b"\xff\xda")
        data += part[part.index(b"\xff\xc4") : scan] + b"\xff\xda\0\x08\1" + bytes([i + 1]) + part[scan + 6 : -2]
    return data + b"\xff\xd9"


def test_scans_of_a_sequential_jpeg_are_judged_each_by_their_own_tables() -> None:
    scene, flat = _scene(1600, 1600)[..., 0], np.full((1600, 1600), 128, np.uint8)
    data = _one_scan_each(scene, flat, flat)
    assert data.count(bytes(512)), "the flat components are coded as zeros"
    assert np.abs(decode_image(data, "a")[..., 0].astype(int) - scene).mean() < 8
    with pytest.raises(ImageError, match="zeros stand"):
        decode_image(_with_hole(data, data.index(b"\xff\xda") + 100_000, 1024), "a")
    last = data.rindex(b"\xff\xc4")
    for cut in (data[:last], data[:last] + b"\xff\xd9"):
        with pytest.raises(ImageError, match="truncated JPEG"):
            decode_image(cut, "a")


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "group4"])
@pytest.mark.parametrize("big_tiff", [False, True])
def test_a_hole_in_a_compressed_tiff_is_told(compression: str, big_tiff: bool) -> None:
    mode = "1" if compression == "group4" else "RGB"
    data = _pillow("TIFF", _scene(), mode, compression=compression, big_tiff=big_tiff)
    decode_image(data, "a")
    for place in (0.2, 0.5, 0.8):
        with pytest.raises(ImageError, match="a: corrupt TIFF: zeros stand"):
            decode_image(_with_hole(data, int(len(data) * place), 1024), "a")
    with pytest.raises(ImageError, match="a: truncated TIFF"):
        decode_image(data[: len(data) // 2], "a")


def test_a_bmp_is_whole_where_its_pixels_are_whatever_its_header_says_of_the_length() -> None:
    for data in (opencv(".bmp")(_scene()), opencv(".bmp")(_scene()[..., 0]), _pillow("BMP", _scene(), "1")):
        for length in (0, len(data) + 1000, 1 << 31):
            renamed = data[:2] + struct.pack("<I", length) + data[6:]
            assert np.array_equal(decode_image(renamed, "a"), decode_image(data, "a"))
            with pytest.raises(ImageError, match="a: truncated BMP: its pixels go on beyond its end"):
                decode_image(renamed[:-1], "a")


def _whole() -> Iterator[tuple[str, bytes]]:
    """Pictures in many encodings, all of them whole."""
    scene, flat = _scene(150, 203), np.full((300, 401, 3), 114, np.uint8)
    half = np.vstack([flat, cv2.resize(scene, (401, 300))])
    for shown, image in (("scene", scene), ("flat", flat), ("half", half), ("dot", scene[:1, :1])):
        exif = Pillow.Exif()
        exif[0x0112] = 1
        for mode in ("RGB", "L", "CMYK"):
            for sampling in ("4:4:4", "4:2:2", "4:2:0") if mode == "RGB" else (None,):
                restarts = {"restart_marker_rows": 1}, {"restart_marker_blocks": 1}, {"restart_marker_blocks": 4}
                for options in ({}, {"progressive": 1}, {"optimize": 1}, *restarts, {"exif": exif}):
                    name = f"{shown} {mode} {sampling} {options}"
                    data = _pillow("JPEG", image, mode, **options, **({"subsampling": sampling} if sampling else {}))
                    yield name, data
                    yield f"{name}, more behind", data + bytes(1000)
                    yield f"{name}, another behind", data + data[: len(data) // 2]
        for compression in ("raw", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits", "jpeg"):
            for mode in ("RGB", "L", "RGBA"):
                if (compression, mode) != ("jpeg", "RGBA"):
                    yield f"{shown} TIFF {compression} {mode}", _pillow("TIFF", image, mode, compression=compression)
        for compression in ("group3", "group4", "raw", "tiff_lzw"):
            yield f"{shown} TIFF {compression} 1", _pillow("TIFF", image, "1", compression=compression)
        yield f"{shown} TIFF tiles", _tiles(image)
        for mode in ("RGB", "L", "1", "P", "RGBA"):
            yield f"{shown} BMP {mode}", _pillow("BMP", image, mode)
        for mode in ("RGB", "RGBA"):
            for options in ({"quality": 60}, {"lossless": True}, {"quality": 90, "exif": exif}):
                yield f"{shown} WebP {mode} {options}", _pillow("WEBP", image, mode, **options)
        for mode in ("RGB", "L", "1", "P", "RGBA"):
            yield f"{shown} PNG {mode}", _pillow("PNG", image, mode)


def _tiles(image: np.ndarray, side: int = 64) -> bytes:
    """A TIFF of tiles compressed by zlib, with its directory at the end."""
    height, width = image.shape[:2]
    across, down = -(-width // side), -(-height // side)
    padded = np.zeros((down * side, across * side, 3), np.uint8)
    padded[:height, :width] = image[..., ::-1]
    tiles = [
        zlib.compress(padded[y : y + side, x : x + side].tobytes())
        for y in range(0, down * side, side)
        for x in range(0, across * side, side)
    ]
    counts = [len(tile) for tile in tiles]
    starts = [8 + sum(counts[:i]) for i in range(len(tiles))]
    body = b"".join(tiles)
    tables = [struct.pack("<3H", 8, 8, 8), *(struct.pack(f"<{len(tiles)}I", *column) for column in (starts, counts))]
    places = [8 + len(body) + sum(len(table) for table in tables[:i]) for i in range(3)]
    single = len(tiles) == 1
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, places[0]), (259, 3, 1, 8), (262, 3, 1, 2), (277, 3, 1, 3),
        (322, 4, 1, side), (323, 4, 1, side), (324, 4, len(tiles), starts[0] if single else places[1]),
        (325, 4, len(tiles), counts[0] if single else places[2]),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", places[2] + len(tables[2])) + body + b"".join(tables) + directory


def test_whole_pictures_are_read_in_all_encodings() -> None:
    count = 0
    for name, data in _whole():
        decode_image(data, name)
        count += 1
    assert count > 300


def test_tiles_beyond_the_end_and_holes_in_them_are_told() -> None:
    data = _tiles(_scene())
    assert np.array_equal(decode_image(data, "a"), _scene())
    with pytest.raises(ImageError, match="a: corrupt TIFF: zeros stand"):
        decode_image(_with_hole(data, 3000, 1024), "a")
    place = data.rindex(struct.pack("<HHI", 325, 4, 35)) + 8
    counts = struct.unpack("<I", data[place : place + 4])[0]
    with pytest.raises(ImageError, match="a: truncated TIFF: its pixels go on beyond its end"):
        decode_image(data[:counts] + struct.pack("<I", len(data)) + data[counts + 4 :], "a")
