"""Pasting: objects of other pictures, and false positives as background.

A patch is a rectangle with surroundings, resized once and placed at whole pixels, so that its box is exact. Within its
box it hides the picture. Its surroundings fade out, or are solved for (Poisson blending, Perez et al. 2003).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.images.image import Image
from trainer.augment.geometry import Boxes, Picture, log_uniform
from trainer.config.augment_sections import CopyPasteConfig, HardNegativesConfig

_TRIES = 20
_HEIGHT_JITTER = 0.05
_LEAST_SIDE = 4
"""Pixels, of a patch after resizing."""


class Patch(NamedTuple):
    """A rectangle cut from a picture."""

    image: Image
    """uint8 [h,w,3] BGR: the box and its surroundings."""
    box_xyxy: NDArray[np.float64]
    """[4] pixels of `image`."""
    label: int
    """-1 for background."""
    source_h: int
    """Height of the picture that it comes from, pixels."""
    height_share: float
    """How far down that picture the middle of the box is, 0..1."""


def cut_patch(image: Image, box_xyxy: NDArray[np.floating], label: int, margin: float) -> Patch:
    """The patch of `box_xyxy` [4] with `margin` of its sides around it, as far as `image` reaches."""
    height, width = image.shape[:2]
    box = np.asarray(box_xyxy, np.float64)
    room = margin * (box[2:] - box[:2])
    x0, y0 = (max(0, int(v)) for v in np.floor(box[:2] - room))
    x1, y1 = (min(side, int(v)) for side, v in zip((width, height), np.ceil(box[2:] + room), strict=True))
    middle = float((box[1] + box[3]) / 2 / height)
    return Patch(image[y0:y1, x0:x1], box - np.array([x0, y0, x0, y0]), label, height, middle)


def paste(
    picture: Picture, patch: Patch, config: CopyPasteConfig | HardNegativesConfig, rng: np.random.Generator
) -> tuple[Picture, Boxes] | None:
    """`picture` with `patch` on it, and the rectangle [4] that it hides; None where it finds no place.

    The patch keeps its size relative to the height of the picture, times `config.scale`. It touches no ignore region. A
    background patch touches no object, an object hides at most `config.max_cover` of any box. The label and box of an
    object are appended. The boxes below are not changed yet: see `uncovered`.
    """
    height, width = picture.size_hw
    factor = log_uniform(config.scale, rng) * height / patch.source_h
    h, w = (max(1, round(side * factor)) for side in patch.image.shape[:2])
    if h > height or w > width or min(h, w) < _LEAST_SIDE:
        return None
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    resized = np.asarray(cv2.resize(patch.image, (w, h), interpolation=method), np.uint8)
    scale = np.array([w / patch.image.shape[1], h / patch.image.shape[0]] * 2)
    box = patch.box_xyxy * scale
    hidden = np.concatenate([np.floor(box[:2]), np.minimum(np.ceil(box[2:]), (w, h))])
    if config.blend == "poisson" or patch.label < 0:
        hidden = np.array([0.0, 0.0, w, h])
    for _ in range(_TRIES):
        x = int(rng.integers(width - w + 1))
        y = int(rng.integers(height - h + 1))
        if config.place == "same_height":
            middle = (patch.height_share + rng.uniform(-_HEIGHT_JITTER, _HEIGHT_JITTER)) * height
            y = int(np.clip(round(middle - (box[1] + box[3]) / 2), 0, height - h))
        corner = np.array([x, y, x, y])
        if _may_lie(picture, hidden + corner, np.array([x, y, x + w, y + h]), patch.label, config):
            break
    else:
        return None
    image, boxes, labels = picture.image.copy(), picture.boxes_xyxy, picture.labels
    image[y : y + h, x : x + w] = _blended(image[y : y + h, x : x + w], resized, box, config.blend)
    if patch.label >= 0:
        boxes = np.concatenate([boxes, (box + corner)[None].astype(np.float32)])
        labels = np.append(labels, patch.label)
    return Picture(image, boxes, labels), (hidden + corner).astype(np.float32)


def _may_lie(
    picture: Picture,
    hidden: NDArray[np.float64],
    patch: NDArray[np.integer],
    label: int,
    config: CopyPasteConfig | HardNegativesConfig,
) -> bool:
    """Whether a patch over the rectangle `patch` [4], which covers things within `hidden` [4], harms nothing."""
    boxes = picture.boxes_xyxy.astype(np.float64)
    touched = _common(boxes, patch) > 0
    if touched[picture.labels < 0].any():
        return False
    if label < 0 or isinstance(config, HardNegativesConfig):
        return not touched.any()
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return bool((_common(boxes, hidden) <= config.max_cover * areas).all())


def _common(boxes: NDArray[np.float64], rectangle: NDArray[np.number]) -> NDArray[np.float64]:
    """[G] areas that `boxes` [G,4] share with `rectangle` [4]."""
    sides = np.minimum(boxes[:, 2:], rectangle[2:]) - np.maximum(boxes[:, :2], rectangle[:2])
    return np.maximum(sides, 0).prod(1)


def _blended(below: Image, patch: Image, box: NDArray[np.float64], blend: str) -> Image:
    """`patch` on `below`, both uint8 [h,w,3]: all of it within `box`, less and less towards its edges."""
    h, w = patch.shape[:2]
    if blend == "poisson" and min(h, w) > 8:  # below that nothing is left inside OpenCV's own border
        mask = np.full((h, w), 255, np.uint8)
        return np.asarray(cv2.seamlessClone(patch, below, mask, (w // 2, h // 2), cv2.NORMAL_CLONE), np.uint8)
    alpha = _ramp(h, box[1], box[3])[:, None] * _ramp(w, box[0], box[2])[None, :]
    mixed = below + alpha[:, :, None] * (patch.astype(np.float32) - below)
    return np.rint(mixed).astype(np.uint8)


def _ramp(side: int, low: float, high: float) -> NDArray[np.float32]:
    """[side] weights: 1 where a pixel has a part in low..high, falling to the first and the last."""
    first, last = int(np.floor(low)), min(side, int(np.ceil(high)))
    alpha = np.ones(side, np.float32)
    alpha[:first] = np.arange(1, first + 1) / (first + 1)
    alpha[last:] = np.arange(side - last, 0, -1) / (side - last + 1)
    return alpha


def uncovered(boxes_xyxy: Boxes, hidden_xyxy: Boxes) -> tuple[Boxes, NDArray[np.float64]]:
    """Boxes [G,4] below a patch that hides a rectangle [4]: the rest of each, and the share of each that is hidden [G].

    A box shrinks where the patch hides one of its sides over the full length. Otherwise it stays, as an annotator would
    draw it, because a part of every side is still visible.
    """
    boxes = boxes_xyxy.astype(np.float64)
    low, high = hidden_xyxy[:2].astype(np.float64), hidden_xyxy[2:].astype(np.float64)
    areas = np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(1), 1e-12)
    share = _common(boxes, hidden_xyxy) / areas
    remains = boxes.copy()
    for axis, across_axis in ((0, 1), (1, 0)):
        across = (low[across_axis] <= boxes[:, across_axis]) & (high[across_axis] >= boxes[:, across_axis + 2])
        across &= share > 0
        start = across & (low[axis] <= boxes[:, axis])
        stop = across & (high[axis] >= boxes[:, axis + 2])
        remains[start, axis] = np.minimum(high[axis], boxes[start, axis + 2])
        remains[stop, axis + 2] = np.maximum(low[axis], remains[stop, axis])
    return remains.astype(np.float32), share


def paste_all(
    picture: Picture,
    patches: Sequence[Patch | None],
    config: CopyPasteConfig | HardNegativesConfig,
    min_visible: float,
    rng: np.random.Generator,
) -> Picture:
    """`picture` with those of `patches` that find a place, one above the other.

    Boxes below a patch shrink as `uncovered` says. A box is dropped where less than the share `min_visible` of it is
    visible: the shares that the patches leave of it are multiplied.
    """
    visible: NDArray[np.float64] = np.ones(len(picture.labels))
    for patch in patches:
        pasted = None if patch is None else paste(picture, patch, config, rng)
        if pasted is None:
            continue
        below = len(picture.labels)
        picture, hidden = pasted
        boxes, share = uncovered(picture.boxes_xyxy[:below], hidden)
        picture = picture._replace(boxes_xyxy=np.concatenate([boxes, picture.boxes_xyxy[below:]]))
        visible = np.concatenate([visible * (1 - share), np.ones(len(picture.labels) - below)])
    keep = visible >= min_visible - 1e-6
    return picture._replace(boxes_xyxy=picture.boxes_xyxy[keep], labels=picture.labels[keep])
