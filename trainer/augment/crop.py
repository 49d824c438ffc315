"""The random crop that keeps small objects."""

from __future__ import annotations

import numpy as np

from trainer.augment.geometry import Boxes, Picture, log_uniform
from trainer.augment.mixing import Rect
from trainer.config.augment_sections import CropConfig


def random_crop(picture: Picture, config: CropConfig, rng: np.random.Generator) -> Picture:
    """A crop of `picture` at whole pixels that meets `config`, boxes moved and not clipped; else `picture` itself.

    Without objects every crop meets it.
    """
    height, width = picture.size_hw
    least = float(rng.choice(config.least))
    objects = picture.boxes_xyxy[picture.labels >= 0]
    for _ in range(config.tries):
        h, w = _sides(height, width, config, rng)
        if config.measure == "share" and len(objects):
            x, y = _around(objects[rng.integers(len(objects))], (height, width), (h, w), rng)
        else:
            x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
        if not len(objects) or _fulfils(objects, (x, y, x + w, y + h), least, config.measure):
            boxes = picture.boxes_xyxy - np.array([x, y, x, y], np.float32)
            return Picture(picture.image[y : y + h, x : x + w], boxes, picture.labels)
    return picture


def _sides(height: int, width: int, config: CropConfig, rng: np.random.Generator) -> tuple[int, int]:
    low, high = config.sides
    side = rng.uniform(low, high)
    root = np.sqrt(log_uniform(config.aspect, rng))
    h, w = (float(np.clip(s, low, high)) for s in (side / root, side * root))
    return max(1, round(height * h)), max(1, round(width * w))


def _around(
    box: Boxes, size_hw: tuple[int, int], crop_hw: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int]:
    """The corner of a crop that contains `box` [4], or that lies within a larger box, drawn evenly."""
    corner = []
    for low, high, side, crop in zip(box[:2], box[2:], size_hw[::-1], crop_hw[::-1], strict=True):
        first, last = sorted((int(np.ceil(high)) - crop, int(np.floor(low))))
        first, last = (min(max(v, 0), side - crop) for v in (first, last))
        corner.append(int(rng.integers(first, last + 1)))
    return corner[0], corner[1]


def _fulfils(boxes_xyxy: Boxes, crop: Rect, least: float, measure: str) -> bool:
    """Whether the crop keeps its objects [G,4]: see `CropConfig.measure`."""
    boxes = boxes_xyxy.astype(np.float64)
    inner = np.clip(boxes, np.array(crop[:2] * 2), np.array(crop[2:] * 2))
    common = (inner[:, 2:] - inner[:, :2]).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    if measure == "iou":
        crop_area = (crop[2] - crop[0]) * (crop[3] - crop[1])
        return bool((common / (areas + crop_area - common)).max() >= least)
    share = common / np.maximum(areas, 1e-12)
    return bool((share > 0).any() and (share[share > 0] >= least - 1e-6).all())
