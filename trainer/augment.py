"""Augmentation: what may happen to a training picture and its boxes on the way into the network's input.

Every function is pure: it draws from the generator that it is given and changes none of its arguments.
Boxes are float32 pixels, and stay exact: a pixel edge at x in the source is at x * scale + offset after.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from models.criterion import REGION
from runtime.image import FILL, Image, Resize
from trainer.config import AugmentConfig
from trainer.own_parts import own_augmentations

Boxes = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Placement:
    """Where a picture goes: resized to `resized_hw`, its top left corner at `offset_xy` of the input."""

    size_hw: tuple[int, int]
    source_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    offset_xy: tuple[int, int]
    """Negative where the picture is cropped at its left or top."""
    fill_bgr: tuple[int, int, int] = (FILL, FILL, FILL)

    def boxes(self, boxes_xyxy: Boxes) -> Boxes:
        """Boxes [G,4] of the source in input pixels, not clipped."""
        scale = np.array([self.resized_hw[1] / self.source_hw[1], self.resized_hw[0] / self.source_hw[0]] * 2)
        return (boxes_xyxy.astype(np.float64) * scale + np.array(self.offset_xy * 2)).astype(np.float32)

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the input that the picture covers."""
        (x, y), (h, w) = self.offset_xy, self.resized_hw
        height, width = self.size_hw
        return slice(max(y, 0), min(y + h, height)), slice(max(x, 0), min(x + w, width))

    def apply(self, image: Image) -> Image:
        """`image` (uint8 [h,w,3]) in a grey uint8 [H,W,3] input, resized once and as the letterbox resizes."""
        if self.resized_hw != image.shape[:2]:
            image = np.asarray(
                cv2.resize(image, (self.resized_hw[1], self.resized_hw[0]), interpolation=cv2.INTER_LINEAR), np.uint8
            )
        rows, columns = self.window
        x, y = self.offset_xy
        out = np.full((*self.size_hw, 3), self.fill_bgr, np.uint8)
        out[rows, columns] = image[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
        return out


def augment(
    image: Image,
    boxes_xyxy: Boxes,
    labels: Labels,
    resize: Resize,
    config: AugmentConfig,
    rng: np.random.Generator,
) -> tuple[Image, Boxes, Labels]:
    """One training view of a picture: (input uint8 [H,W,3], boxes [G,4] in input pixels, labels [G]).

    Where neither flip, scale nor colour fires, the pixels are those of `runtime.image.letterbox`. G may be
    smaller than it was: `visible_boxes` says which boxes stay; of an ignore region whatever is left.
    """
    if config.own:
        image, boxes_xyxy, labels = own_augmentations(config.own, image, boxes_xyxy, labels, rng)
    if rng.random() < config.flip:  # before the letterbox, so that its border stays right and below
        image, boxes_xyxy = flip_horizontal(image, boxes_xyxy)
    source_hw = (image.shape[0], image.shape[1])
    placement = resized_placement(source_hw, resize)
    size_hw = placement.size_hw
    if rng.random() < config.scale_probability:
        placement = random_placement(source_hw, size_hw, config.scale, rng, placement.fill_bgr)
    view = placement.apply(image)
    if rng.random() < config.color_probability:
        view[placement.window] = jitter_color(view[placement.window], config, rng)
    least = np.where(labels == REGION, 0.0, config.min_visible)  # what is left of a crowd is still no background
    boxes, keep = visible_boxes(placement.boxes(boxes_xyxy), size_hw, least)
    return view, boxes[keep], labels[keep]


def resized_placement(source_hw: tuple[int, int], resize: Resize) -> Placement:
    """The deployment's own rule."""
    fitted = resize.fit(source_hw)
    return Placement(fitted.size_hw, source_hw, fitted.resized_hw, (0, 0), fitted.fill_bgr)


def random_placement(
    source_hw: tuple[int, int], size_hw: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator,
    fill_bgr: tuple[int, int, int] = (FILL, FILL, FILL),
) -> Placement:  # fmt: skip
    """The letterbox's size times a log-uniform factor from `scale`, cropped or placed anywhere."""
    fit = min(size_hw[0] / source_hw[0], size_hw[1] / source_hw[1])
    factor = fit * float(np.exp(rng.uniform(np.log(scale[0]), np.log(scale[1]))))
    h, w = max(1, round(source_hw[0] * factor)), max(1, round(source_hw[1] * factor))
    # Room to move: negative where the picture is larger than the input and a part must be cropped.
    room_x, room_y = size_hw[1] - w, size_hw[0] - h
    x = int(rng.integers(min(room_x, 0), max(room_x, 0) + 1))
    y = int(rng.integers(min(room_y, 0), max(room_y, 0) + 1))
    return Placement(size_hw, source_hw, (h, w), (x, y), fill_bgr)


def flip_horizontal(image: Image, boxes_xyxy: Boxes) -> tuple[Image, Boxes]:
    """The mirror image (uint8 [h,w,3]) and its boxes [G,4]; twice is the identity, up to float rounding."""
    width = image.shape[1]
    flipped = boxes_xyxy.copy()
    flipped[:, 0], flipped[:, 2] = width - boxes_xyxy[:, 2], width - boxes_xyxy[:, 0]
    return np.ascontiguousarray(image[:, ::-1]), flipped


def visible_boxes(
    boxes_xyxy: Boxes, size_hw: tuple[int, int], min_visible: float | NDArray[np.float64]
) -> tuple[Boxes, NDArray[np.bool_]]:
    """Boxes [G,4] clipped to the input, and which to keep [G].

    Kept are boxes of which at least the share `min_visible` (one, or [G]) of the area is inside, and whose sides are at
    least 1 px: below that an object has no pixel to be seen by.
    """
    height, width = size_hw
    clipped = np.clip(boxes_xyxy, 0, np.array([width, height, width, height], np.float32))
    sides, full = clipped[:, 2:] - clipped[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    inside = sides.astype(np.float64).prod(1) / np.maximum(full.astype(np.float64).prod(1), 1e-12)
    return clipped, (sides.min(1, initial=np.inf) >= 1) & (inside >= min_visible - 1e-6)


_LUMA = np.array([0.114, 0.587, 0.299])  # of BGR


def jitter_color(image: Image, config: AugmentConfig, rng: np.random.Generator) -> Image:
    """Random brightness, contrast, saturation and hue of a uint8 [h,w,3] BGR picture, as one affine map of colours."""
    brightness = 1 + rng.uniform(-config.brightness, config.brightness)
    contrast = 1 + rng.uniform(-config.contrast, config.contrast)
    saturation = 1 + rng.uniform(-config.saturation, config.saturation)
    angle = 2 * np.pi * rng.uniform(-config.hue, config.hue)
    # Hue: a turn around the grey axis (Rodrigues). Saturation: towards or away from the pixel's own grey.
    # Both leave greys as they are. Contrast: towards or away from the picture's mean grey.
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    turn = np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) / 3
    saturate = saturation * np.eye(3) + (1 - saturation) * _LUMA[None, :]
    mean = float(np.array(cv2.mean(image)[:3]) @ _LUMA)
    matrix = brightness * contrast * (saturate @ turn)
    offset = np.full((3, 1), brightness * (1 - contrast) * mean)
    return np.asarray(cv2.transform(image, np.hstack([matrix, offset])), np.uint8)
