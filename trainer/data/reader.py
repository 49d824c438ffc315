"""Training pictures as they are read, with their objects: what `TrainSet` and its augmentation share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.loss import REGION
from runtime.datasets.annotations import ImageRecord
from runtime.datasets.orientation import oriented
from runtime.images.image import Image, ImageError, read_image
from trainer.augment.geometry import Picture
from trainer.data.cache import Pictures, reduced_hw
from trainer.data.shared_memory import SharedMemory
from trainer.data.tiles import TileRecord

log = logging.getLogger(__name__)


class PictureReader:
    """Pictures and their objects by index. All loader processes share which pictures cannot be used."""

    def __init__(self, records: Sequence[ImageRecord], pictures: Pictures) -> None:
        self.records, self.pictures = records, pictures
        # Shared, because persistent loader processes have copies of this object.
        self._shared = SharedMemory(len(records))

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> Picture | None:
        """A picture and its objects, crowds as regions; None (logged once) where it cannot be used."""
        record = self.records[index]
        try:
            image, record = _read(record, self.pictures)
        except ImageError as error:
            if not self._unusable[index]:
                self._unusable[index] = True
                log.warning("%s; image id %d is left out of training", error, record.id)
            return None
        return Picture(image, record.boxes_xyxy, np.where(record.crowd, REGION, record.labels))

    def background(self, path: Path) -> Image | None:
        """A picture that hard negatives are cut from; None (logged) where it cannot be read."""
        try:
            return read_image(path)
        except ImageError as error:
            log.warning("%s; it was a source of hard negatives", error)
            return None

    @property
    def unusable(self) -> list[Path]:
        """Pictures that could not be used so far."""
        return [self.records[i].path for i in np.flatnonzero(self._unusable).tolist()]

    @property
    def _unusable(self) -> NDArray[np.bool_]:
        """[images] whether a picture turned out to be unusable."""
        return self._shared.array(len(self.records), np.bool_)


def _read(record: ImageRecord, pictures: Pictures) -> tuple[Image, ImageRecord]:
    """The picture, and its record in the picture's pixels: turned and reduced as the picture is; or a tile of it."""
    if isinstance(record, TileRecord):
        image, _ = _read(record.picture, pictures)
        x1, y1, x2, y2 = record.window
        return np.ascontiguousarray(image[y1:y2, x1:x2]), record
    image = pictures.read(record.path)
    h, w = image.shape[:2]
    annotated_hw = reduced_hw((record.height, record.width), pictures.reduce_to)
    if (w, h) == annotated_hw != (h, w):
        record = oriented(record, (record.width, record.height))
    elif (h, w) != annotated_hw:
        record = oriented(record, (h, w))  # whose error names both sizes
    if (h, w) == (record.height, record.width):
        return image, record
    scale = np.array([w / record.width, h / record.height] * 2)
    boxes = (record.boxes_xyxy * scale).astype(np.float32)
    return image, replace(record, height=h, width=w, boxes_xyxy=boxes)
