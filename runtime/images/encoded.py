"""Facts about an encoded picture from its bytes, without decoding: its format, pixels, orientation and damage.

Both `runtime.images.image`, which decodes, and `runtime.images.image_header`, which reads headers only, use them.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.images.formats import boxes, jpeg, raster, tiff

MAX_PIXELS = 1 << 28
"""Largest picture, frame, or region of one: 16384x16384, 0.8 GB. A larger one is a mistaken shape, a file made to
exhaust the memory, or should be cut into tiles, since its objects vanish in the network's input."""

_BEGINNINGS = {
    b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"BM": "BMP", b"GIF87a": "GIF", b"GIF89a": "GIF",
    b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000", b"\xff\x4f\xff\x51": "JPEG 2000", b"\x59\xa6\x6a\x95": "Sun raster",
    b"#?RADIANCE": "Radiance", b"#?RGBE": "Radiance",
}  # fmt: skip
_SIZES = {
    "JPEG": jpeg.jpeg_size, "PNG": raster.png_size, "BMP": raster.bmp_size, "GIF": raster.gif_size,
    "TIFF": tiff.tiff_size, "WebP": raster.webp_size, "AVIF": boxes.avif_size, "JPEG 2000": boxes.jpeg2000_size,
    "portable map": raster.portable_size, "Sun raster": raster.sun_size, "Radiance": raster.radiance_size,
}  # fmt: skip
_DAMAGE = {
    "JPEG": jpeg.jpeg_damage, "PNG": raster.png_damage, "BMP": raster.bmp_damage, "TIFF": tiff.tiff_damage,
    "WebP": raster.webp_damage,
}  # fmt: skip


def encoded_format(data: bytes) -> str:
    """'JPEG', 'PNG' and so on, by the first bytes of a file (256 are enough); '' for other formats.

    These are all formats that OpenCV's packages decode, and 'HEIC', which they do not.
    """
    if brand := boxes.heif_kind(data):
        return brand
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[:1] == b"P" and data[1:2] in b"1234567Ff" and data[2:3].isspace():
        return "portable map"
    return next((name for beginning, name in _BEGINNINGS.items() if data.startswith(beginning)), "")


def encoded_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of the stored pixels; None where `data` does not have them, and for unknown formats."""
    size = _SIZES.get(encoded_format(data), lambda _: None)(data)
    return None if size is None else (abs(int(size[0])), abs(int(size[1])))


def refusal(data: bytes) -> str:
    """Why the picture `data` should not be decoded; '' where it may be. Nothing is decoded here.

    Reasons: it is HEIC, has more than `MAX_PIXELS`, is damaged, or is of a known format without a size in its header.
    """
    name = encoded_format(data)
    if name == "HEIC":
        return f"is a HEIC picture, which OpenCV cannot decode: {boxes.HEIC_ADVICE}"
    size = encoded_size(data)
    if size is not None and size[0] * size[1] > MAX_PIXELS:
        return f"{size[1]}x{size[0]} (width x height) are more than {MAX_PIXELS} pixels: cut it into tiles"
    damage = _DAMAGE.get(name, lambda _: "")(data)
    if not damage and size is None and name:
        return f"not a picture that OpenCV can decode: it begins as {name} does and has no size in its header"
    return damage


def decoded_damage(data: bytes, pixels: NDArray[np.uint8]) -> str:
    """What is missing of the picture `data` that only its decoded `pixels` show, uint8 [H, W, 3] as stored; or ''."""
    return jpeg.jpeg_gray_end(data, pixels) if encoded_format(data) == "JPEG" else ""


def exif_orientation(data: bytes) -> int:
    """The EXIF orientation 1..8 of an encoded JPEG, PNG, WebP, TIFF or AVIF. `data` is the file, or its beginning.

    Without one it is 1, upright. TIFF 6.0, tag 274: 2 mirrored, 3 turned by 180 degrees, 4 mirrored upside down,
    5 transposed, 6 to be turned clockwise, 7 transposed about the other diagonal, 8 to be turned anticlockwise.
    """
    name = encoded_format(data)
    if name == "AVIF":
        return boxes.avif_orientation(data)
    exif = {"JPEG": jpeg.jpeg_exif, "PNG": raster.exif_chunk, "WebP": raster.exif_chunk}.get(name or "")
    value = tiff.tiff_orientation(data if exif is None else exif(data))
    return value if 1 <= value <= 8 else 1


def apply_orientation(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The stored pixels [H, W, ...] turned upright, by the EXIF `orientation` 1..8."""
    if orientation >= 5:
        image = cv2.transpose(image)  # type: ignore[assignment]
    turns = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}  # the axis that the others are mirrored about
    return image if orientation in (1, 5) else cv2.flip(image, turns[orientation])  # type: ignore[return-value]
