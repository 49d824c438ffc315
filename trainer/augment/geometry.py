"""Geometry of pictures and their boxes: placing in the input, mirroring, affine maps, clipping."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.images.image import FILL, Image, Resize, ShortSide
from trainer.config.augment_sections import MultiScaleConfig

Boxes = NDArray[np.float32]
Labels = NDArray[np.int64]


class Picture(NamedTuple):
    """A picture with its objects, at any stage of the pipeline."""

    image: Image
    """uint8 [h,w,3] BGR."""
    boxes_xyxy: Boxes
    """[G,4] pixels of `image`; may reach beyond it, because boxes are clipped at the end."""
    labels: Labels
    """[G]; negative where a box is no object but a region to be ignored."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of `image`, pixels."""
        return self.image.shape[0], self.image.shape[1]


@dataclass(frozen=True)
class Placement:
    """Where a picture lies in an input of `size_hw`: resized to `resized_hw`, its top left corner at `offset_xy`."""

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
        """`image` (uint8 [h,w,3]) in a gray uint8 [H,W,3] input, resized once and as the letterbox resizes."""
        if self.resized_hw != image.shape[:2]:
            image = np.asarray(
                cv2.resize(image, (self.resized_hw[1], self.resized_hw[0]), interpolation=cv2.INTER_LINEAR), np.uint8
            )
        rows, columns = self.window
        x, y = self.offset_xy
        out = np.empty((*self.size_hw, 3), np.uint8)
        for border in (out[: rows.start], out[rows.stop :], out[rows, : columns.start], out[rows, columns.stop :]):
            border[:] = self.fill_bgr
        out[rows, columns] = image[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
        return out


def resized_placement(source_hw: tuple[int, int], resize: Resize) -> Placement:
    """The placement that deployment uses, by the rule `resize`."""
    fitted = resize.fit(source_hw)
    return Placement(fitted.size_hw, source_hw, fitted.resized_hw, (0, 0), fitted.fill_bgr)


def random_placement(
    source_hw: tuple[int, int], size_hw: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator,
    fill_bgr: tuple[int, int, int] = (FILL, FILL, FILL), fit_hw: tuple[int, int] | None = None,
) -> Placement:  # fmt: skip
    """The letterbox's size times a log-uniform factor from `scale`, cropped or placed anywhere in `size_hw`.

    The letterbox's size is that in `fit_hw`, by default `size_hw` itself.
    """
    fit_hw = fit_hw or size_hw
    fit = min(fit_hw[0] / source_hw[0], fit_hw[1] / source_hw[1])
    factor = fit * log_uniform(scale, rng)
    h, w = max(1, round(source_hw[0] * factor)), max(1, round(source_hw[1] * factor))
    # Room to move: negative where the picture is larger than the input and a part must be cropped.
    room_x, room_y = size_hw[1] - w, size_hw[0] - h
    x = int(rng.integers(min(room_x, 0), max(room_x, 0) + 1))
    y = int(rng.integers(min(room_y, 0), max(room_y, 0) + 1))
    return Placement(size_hw, source_hw, (h, w), (x, y), fill_bgr)


def log_uniform(span: tuple[float, float], rng: np.random.Generator) -> float:
    """A factor within `span`, drawn evenly on a logarithmic scale: half is as likely as double."""
    return float(np.exp(rng.uniform(np.log(span[0]), np.log(span[1]))))


def random_size(resize: Resize, config: MultiScaleConfig, rng: np.random.Generator) -> Resize:
    """The same rule for another input size, its sides rounded to multiples of `config.multiple`."""
    scaled = scaled_rule(resize, log_uniform(config.factor, rng), config.multiple)
    return replace(scaled, multiple=max(scaled.multiple, config.multiple)) if isinstance(scaled, ShortSide) else scaled


def scaled_rule(resize: Resize, factor: float, multiple: int) -> Resize:
    """The same rule for an input of `factor` times the size; a fixed size becomes a multiple of `multiple` pixels."""
    if isinstance(resize, ShortSide):
        short, long = (max(1, round(side * factor)) for side in (resize.short, resize.long))
        return replace(resize, short=short, long=long)
    height, width = (max(1, round(side * factor / multiple)) * multiple for side in resize.size_hw)
    return replace(resize, size_hw=(height, width))


def flip_horizontal(image: Image, boxes_xyxy: Boxes) -> tuple[Image, Boxes]:
    """The mirror image (uint8 [h,w,3]) and its boxes [G,4]; twice is the identity, up to float rounding."""
    width = image.shape[1]
    flipped = boxes_xyxy.copy()
    flipped[:, 0], flipped[:, 2] = width - boxes_xyxy[:, 2], width - boxes_xyxy[:, 0]
    return np.asarray(cv2.flip(image, 1), np.uint8), flipped


def flip_vertical(image: Image, boxes_xyxy: Boxes) -> tuple[Image, Boxes]:
    """Top and bottom change places; otherwise as `flip_horizontal`."""
    height = image.shape[0]
    flipped = boxes_xyxy.copy()
    flipped[:, 1], flipped[:, 3] = height - boxes_xyxy[:, 3], height - boxes_xyxy[:, 1]
    return np.asarray(cv2.flip(image, 0), np.uint8), flipped


def affine(picture: Picture, matrix: NDArray[np.float64], fill_bgr: tuple[int, int, int]) -> Picture:
    """`picture` under the map p' = matrix [2,3] @ (x, y, 1) of pixel edges, on a canvas of the same size.

    Boxes become the hulls of their moved corners: exact where sides stay upright, and no tighter than that of a
    rectangle where they do not (a round object turned by 30 degrees fills less of its box).
    """
    height, width = picture.size_hw
    linear, shift = matrix[:, :2], matrix[:, 2]
    # OpenCV counts from pixel centers: edge = center + 0.5 before and after.
    centers = np.hstack([linear, (shift + linear @ (0.5, 0.5) - 0.5)[:, None]])
    image = cv2.warpAffine(
        picture.image, centers, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT,
        borderValue=fill_bgr,
    )  # fmt: skip
    corners = picture.boxes_xyxy.astype(np.float64)[:, [0, 1, 2, 1, 0, 3, 2, 3]].reshape(-1, 4, 2)
    moved = corners @ linear.T + shift
    boxes = np.concatenate([moved.min(1), moved.max(1)], axis=1).astype(np.float32)
    return Picture(np.asarray(image, np.uint8), boxes, picture.labels)


def visible_boxes(
    boxes_xyxy: Boxes, size_hw: tuple[int, int], min_visible: float | NDArray[np.float64]
) -> tuple[Boxes, NDArray[np.bool_]]:
    """Boxes [G,4] clipped to the input, and which to keep [G].

    A box is kept where at least the share `min_visible` (one, or [G]) of its area is inside, and its clipped sides have
    at least 1 px: a smaller object has no pixel of its own.
    """
    return boxes_in_window(boxes_xyxy, (slice(0, size_hw[0]), slice(0, size_hw[1])), min_visible)


def boxes_in_window(
    boxes_xyxy: Boxes, window: tuple[slice, slice], min_visible: float | NDArray[np.float64]
) -> tuple[Boxes, NDArray[np.bool_]]:
    """As `visible_boxes`, for the rows and columns `window` of the input that the picture covers."""
    rows, columns = window
    low = np.array([columns.start, rows.start] * 2, np.float32)
    high = np.array([columns.stop, rows.stop] * 2, np.float32)
    clipped = np.clip(boxes_xyxy, low, high)
    sides, full = clipped[:, 2:] - clipped[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    inside = sides.astype(np.float64).prod(1) / np.maximum(full.astype(np.float64).prod(1), 1e-12)
    return clipped, (sides.min(1, initial=np.inf) >= 1) & (inside >= np.asarray(min_visible) - 1e-6)


def least_visible(labels: Labels, min_visible: float) -> NDArray[np.float64]:
    """[G] the least visible share of each box: `min_visible`, and 0 for ignore regions, which always stay."""
    return np.where(labels < 0, 0.0, min_visible)
