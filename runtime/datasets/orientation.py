"""Annotations of pictures with an EXIF orientation.

`read_image` turns a picture upright by its EXIF orientation. Annotations with the width and height of the upright
picture describe the upright picture. Annotations with these two swapped, of a file whose orientation swaps them (5 to
8), were made on the pixels as stored: their boxes are turned with the picture. Any other difference in size is an
error.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from runtime.datasets.annotations import ImageRecord
from runtime.images.encoded import exif_orientation
from runtime.images.image import ImageError


def oriented(record: ImageRecord, image_hw: tuple[int, int]) -> ImageRecord:
    """`record` for the picture as `read_image` gives it: unchanged, or turned by the rule of this module.

    Raises `ImageError` for any other difference in size: a model would learn wrong boxes.
    """
    if image_hw == (record.height, record.width):
        return record
    h, w = image_hw
    sizes = f"the picture is {w}x{h} but its annotation says {record.width}x{record.height} (width x height)"
    if image_hw != (record.width, record.height):
        raise ImageError(record.path, sizes)
    try:
        orientation = exif_orientation(record.path.read_bytes())
    except OSError as error:
        raise ImageError(record.path, f"cannot be read: {error.strerror}") from None
    if orientation < 5:
        raise ImageError(record.path, f"{sizes}, and the file has no EXIF orientation that would turn it")
    boxes = rotate_boxes(record.boxes_xyxy, (record.height, record.width), orientation)
    return replace(record, height=h, width=w, boxes_xyxy=boxes)


def rotate_boxes(boxes_xyxy: NDArray[np.float32], stored_hw: tuple[int, int], orientation: int) -> NDArray[np.float32]:
    """Boxes [G,4] on the stored pixels of a picture of EXIF orientation 5..8, as boxes on the upright picture."""
    height, width = stored_hw
    x1, y1, x2, y2 = boxes_xyxy.T
    # Upright x comes from stored y, and upright y from stored x: forwards, or counted from the far side.
    left, right = (height - y2, height - y1) if orientation in (6, 7) else (y1, y2)
    top, bottom = (width - x2, width - x1) if orientation in (7, 8) else (x1, x2)
    return np.stack([left, top, right, bottom], axis=1).astype(np.float32)
