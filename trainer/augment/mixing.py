"""Several pictures in one: mosaic and mixup."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from trainer.augment.geometry import Picture, Placement, random_placement
from trainer.config.augment_sections import MixupConfig, MosaicConfig

Rect = tuple[int, int, int, int]
"""x0, y0, x1, y1, pixels."""


def mosaic_tiles(size_hw: tuple[int, int], config: MosaicConfig, rng: np.random.Generator) -> list[Rect]:
    """The four parts of an input of `size_hw`, in random order; together they are all of it."""
    height, width = size_hw
    x = min(max(1, round(rng.uniform(*config.center) * width)), width - 1)
    y = min(max(1, round(rng.uniform(*config.center) * height)), height - 1)
    tiles = [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]
    return [tiles[i] for i in rng.permutation(4)]


def mosaic(
    pictures: Sequence[Picture | None],
    size_hw: tuple[int, int],
    fill_bgr: tuple[int, int, int],
    config: MosaicConfig,
    rng: np.random.Generator,
    view: Callable[[Picture, Placement], Picture],
) -> Picture:
    """An input of `size_hw` with the four `pictures`, each cropped or placed at random within its part.

    `view` makes a picture's part from it and its placement, its boxes clipped. None leaves its part gray.
    """
    canvas = np.full((*size_hw, 3), fill_bgr, np.uint8)
    boxes: list[NDArray[np.float32]] = [np.zeros((0, 4), np.float32)]
    labels: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    for picture, (x0, y0, x1, y1) in zip(pictures, mosaic_tiles(size_hw, config, rng), strict=True):
        if picture is None:
            continue
        placement = random_placement(picture.size_hw, (y1 - y0, x1 - x0), config.scale, rng, fill_bgr, size_hw)
        part = view(picture, placement)
        canvas[y0:y1, x0:x1] = part.image
        boxes.append(part.boxes_xyxy + np.array([x0, y0, x0, y0], np.float32))
        labels.append(part.labels)
    return Picture(canvas, np.concatenate(boxes), np.concatenate(labels))


def mixup(first: Picture, second: Picture, config: MixupConfig, rng: np.random.Generator) -> Picture:
    """Two views of one size laid over each other, the weight from Beta(alpha, alpha); all objects of both."""
    weight = float(rng.beta(config.alpha, config.alpha))
    return Picture(
        np.asarray(cv2.addWeighted(first.image, weight, second.image, 1 - weight, 0), np.uint8),
        np.concatenate([first.boxes_xyxy, second.boxes_xyxy]),
        np.concatenate([first.labels, second.labels]),
    )
