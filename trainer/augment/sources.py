"""What augmentation needs besides the picture itself: other training pictures, mined false positives, transforms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.datasets.annotations import ImageRecord
from runtime.images.image import Image
from trainer.augment.geometry import Boxes, Labels, Picture
from trainer.augment.paste import Patch, cut_patch
from trainer.augment.transforms import Transform, make_transforms
from trainer.config.augment import AugmentConfig
from trainer.config.augment_sections import CopyPasteConfig, HardNegativesConfig
from trainer.prepare.negatives import Negative, read_negatives

_TRIES = 5


class Reader(Protocol):
    """Training pictures, however they are read (`trainer.data.reader`)."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Picture | None:
        """A picture and its objects, None where it cannot be used."""

    def background(self, path: Path) -> Image | None:
        """The picture that a hard negative is cut from, None where it cannot be read."""


@dataclass(frozen=True)
class Sources:
    """The draws depend on the generator and the files only, so that every loader process draws the same."""

    reader: Reader | None = None
    """Reads the training pictures; without a reader there are no other pictures."""
    holders: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """[O] for every object that may be copied, the index of its picture."""
    negatives: Sequence[Negative] = ()
    transforms: Sequence[Transform] = ()
    """Of torchvision, then of albumentations."""

    def picture(self, rng: np.random.Generator) -> Picture | None:
        """Any training picture; None where five in a row cannot be used."""
        if self.reader is None:
            return None
        for _ in range(_TRIES):
            picture = self.reader.read(int(rng.integers(len(self.reader))))
            if picture is not None:
                return picture
        return None

    def object_patches(self, config: CopyPasteConfig, rng: np.random.Generator) -> list[Patch]:
        """Objects of one other picture, because reading takes most of the time.

        Every object that `config` allows to copy is equally likely. There are as many as `config.count` draws, fewer
        where the picture has fewer, none where it cannot be used.
        """
        count = int(rng.integers(config.count[0], config.count[1] + 1))
        if self.reader is None or not len(self.holders):
            return []
        picture = self.reader.read(int(self.holders[rng.integers(len(self.holders))]))
        if picture is None:
            return []
        rows = copyable(picture.boxes_xyxy, picture.labels, picture.size_hw, config)
        return [
            cut_patch(picture.image, picture.boxes_xyxy[row], int(picture.labels[row]), config.margin)
            for row in rng.permutation(rows)[:count]
        ]

    def negative_patch(self, config: HardNegativesConfig, rng: np.random.Generator) -> Patch | None:
        """A mined false positive, drawn evenly, as background."""
        if self.reader is None or not self.negatives:
            return None
        negative = self.negatives[int(rng.integers(len(self.negatives)))]
        image = self.reader.background(negative.path)
        if image is None:
            return None
        height, width = image.shape[:2]
        box = np.clip(np.array(negative.box_xyxy), 0, [width, height, width, height])
        if (box[2:] - box[:2]).min() < 1:  # mined in another picture of that name
            return None
        return cut_patch(image, box, -1, config.margin)


def copyable(boxes_xyxy: Boxes, labels: Labels, size_hw: tuple[int, int], config: CopyPasteConfig) -> Labels:
    """Rows of the objects that `config` allows to copy; ignore regions are not objects."""
    low, high = config.sides
    boxes = boxes_xyxy.astype(np.float64)
    sides = boxes[:, 2:] - boxes[:, :2]
    share = np.sqrt(sides.prod(1) / (size_hw[0] * size_hw[1]))
    rows = np.flatnonzero((share >= low) & (share <= high) & (labels >= 0))
    room = config.margin * sides[rows]
    first, last = np.floor(boxes[rows, :2] - room), np.ceil(boxes[rows, 2:] + room)
    common = np.minimum(last[:, None], boxes[None, :, 2:]) - np.maximum(first[:, None], boxes[None, :, :2])
    foreign = (common > 0).all(2) & (np.arange(len(boxes)) != rows[:, None])  # [O,G] parts of another in the patch
    return rows[~foreign.any(1)]


def make_sources(config: AugmentConfig, records: Sequence[ImageRecord], reader: Reader) -> Sources:
    """What `config` needs of the pictures of `records`, which `reader` reads.

    Raises `ConfigError` for a file of negatives or a transform that cannot be used.
    """
    negatives: Sequence[Negative] = ()
    if config.hard_negatives.probability and config.hard_negatives.file is not None:
        negatives = read_negatives(config.hard_negatives.file)
    holders = np.zeros(0, np.int64)
    if config.copy_paste.probability:
        counts = [
            len(copyable(r.boxes_xyxy, np.where(r.crowd, -1, r.labels), (r.height, r.width), config.copy_paste))
            for r in records
        ]
        holders = np.repeat(np.arange(len(records)), counts)
    return Sources(reader, holders, negatives, make_transforms(config))
