"""From an encoded picture to pixels, within the limits of a server."""

from __future__ import annotations

from runtime.images.encoded import encoded_format, encoded_size
from runtime.images.formats.boxes import HEIC_ADVICE
from runtime.images.image import Image, decode_image
from runtime.serve.body import Part
from runtime.serve.errors import RequestError

KINDS = "JPEG, PNG, WebP, BMP, TIFF, GIF or AVIF"


def decode_part(part: Part, max_pixels: int) -> Image:
    """The picture in `part` as uint8 [H, W, 3] BGR, upright.

    Its size is read from its header before anything is decoded. Raises `RequestError`: 413 for more than `max_pixels`,
    415 for HEIC, 422 for what is no picture; `ImageError` for one that is damaged.
    """
    kind = encoded_format(part.data)
    if kind == "HEIC":
        raise RequestError(415, f"{part.name}: expected {KINDS}, got HEIC: {HEIC_ADVICE}")
    if not kind:  # OpenCV would try every decoder that it has
        raise RequestError(422, f"{part.name}: not a picture; expected the bytes of a {KINDS} file")
    size = encoded_size(part.data)
    if size is not None and size[0] * size[1] > max_pixels:
        pixels = f"{size[1]}x{size[0]} (width x height)"
        raise RequestError(413, f"{part.name}: expected at most {max_pixels} pixels (--max-pixels), got {pixels}")
    return decode_image(part.data, part.name)
