"""The size of a picture, read from its file without decoding its pixels."""

from __future__ import annotations

from pathlib import Path

from runtime.images.encoded import encoded_format, encoded_size, exif_orientation
from runtime.images.image import ImageError, read_image

_HEAD = 1 << 18
"""Bytes read at first; a JPEG's EXIF and size lie within its first few segments of at most 64 KiB."""


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of the picture at `path`, upright: the shape that `read_image` gives it.

    Files other than JPEG, PNG and BMP, and those whose header does not say, are decoded. Raises `ImageError`.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise ImageError(path, f"cannot be read: {error.strerror}") from None
    except ValueError as error:  # a NUL, or half of a surrogate pair
        raise ImageError(path, f"is no name that a file can have: {error}") from None
    size, name = encoded_size(head), encoded_format(head)
    if name == "PNG" and (len(head) == _HEAD or head.rstrip(b"\0")[-8:-4] != b"IEND"):
        size = None  # an eXIf chunk may follow the pixels, and a file that does not end may have lost it
    if size is None or min(size) < 1 or name not in ("JPEG", "PNG", "BMP"):
        image = read_image(path)
        return image.shape[0], image.shape[1]
    return size[::-1] if exif_orientation(head) >= 5 else size
