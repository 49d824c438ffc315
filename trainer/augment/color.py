"""Color: random jitter, distortion, and the photometric operations of AutoAugment. uint8 [h,w,3] BGR in and out."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.images.image import Image
from trainer.augment.geometry import log_uniform
from trainer.config.augment import AugmentConfig
from trainer.config.augment_sections import DistortConfig

_LUMA = np.array([0.114, 0.587, 0.299])  # of BGR
_LEVELS = np.arange(256, dtype=np.float64)


def jitter_color(image: Image, config: AugmentConfig, rng: np.random.Generator) -> Image:
    """Random brightness, contrast, saturation and hue of a uint8 [h,w,3] BGR picture, as one affine map of colors."""
    brightness = 1 + rng.uniform(-config.brightness, config.brightness)
    contrast = 1 + rng.uniform(-config.contrast, config.contrast)
    saturation = 1 + rng.uniform(-config.saturation, config.saturation)
    angle = 2 * np.pi * rng.uniform(-config.hue, config.hue)
    # Hue: a rotation around the gray axis (Rodrigues). Saturation: towards or away from the pixel's own gray.
    # Neither changes a gray pixel. Contrast: towards or away from the picture's mean gray.
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    turn = np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) / 3
    saturate = saturation * np.eye(3) + (1 - saturation) * _LUMA[None, :]
    matrix = brightness * contrast * (saturate @ turn)
    offset = np.full((3, 1), brightness * (1 - contrast) * _mean_gray(image))
    return np.asarray(cv2.transform(image, np.hstack([matrix, offset])), np.uint8)


def distort(image: Image, config: DistortConfig, rng: np.random.Generator) -> Image:
    """Gamma; and on a share of the pictures each, channels that change places, and gray instead of color."""
    image = _looked_up(image, 255 * (_LEVELS / 255) ** log_uniform(config.gamma, rng))
    if rng.random() < config.shuffle:
        image = np.ascontiguousarray(image[:, :, rng.permutation(3)])
    if rng.random() < config.gray:
        image = np.repeat(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[:, :, None], 3, axis=2)
    return image


def _mean_gray(image: Image) -> float:
    return float(np.array(cv2.mean(image)[:3]) @ _LUMA)


def _counts(image: Image) -> NDArray[np.int64]:
    """[256,3] how many pixels have each level, by channel."""
    counts = [cv2.calcHist([image], [channel], None, [256], [0, 256]).reshape(-1) for channel in range(3)]
    return np.stack(counts, axis=1).astype(np.int64)


def _looked_up(image: Image, table: NDArray[np.float64]) -> Image:
    """Each level replaced by that of `table` [256] (or [256,3], one for each channel), rounded."""
    levels = np.clip(np.rint(table), 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(image, levels if levels.ndim == 1 else levels[:, None, :]), np.uint8)


# ---------------------------------------------------------------------------------------------
# AutoAugment's operations, as torchvision.transforms.v2.functional has them; factor 1 is the picture itself


def brightness(image: Image, factor: float) -> Image:
    return _looked_up(image, _LEVELS * factor)


def contrast(image: Image, factor: float) -> Image:
    """Towards (below 1) or away from the picture's mean gray."""
    return _looked_up(image, _LEVELS * factor + (1 - factor) * _mean_gray(image))


def color(image: Image, factor: float) -> Image:
    """Saturation: towards (below 1) or away from each pixel's own gray."""
    matrix = factor * np.eye(3) + (1 - factor) * _LUMA[None, :]
    return np.asarray(cv2.transform(image, matrix), np.uint8)


_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13


def sharpness(image: Image, factor: float) -> Image:
    """Towards (below 1) or away from a smoothed picture; the outermost pixels stay."""
    if min(image.shape[:2]) < 3:
        return image
    smooth = image.copy()
    smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, _SMOOTH)[1:-1, 1:-1]
    return np.asarray(cv2.addWeighted(image, factor, smooth, 1 - factor, 0), np.uint8)


def autocontrast(image: Image) -> Image:
    """Each channel stretched over 0..255; a channel of one level stays."""
    occurs = _counts(image) > 0
    low, high = occurs.argmax(0).astype(np.float64), 255.0 - occurs[::-1].argmax(0)
    flat = high <= low
    low, span = np.where(flat, 0, low), np.where(flat, 255, high - low)
    return _looked_up(image, (_LEVELS[:, None] - low) * 255 / span)


def equalize(image: Image) -> Image:
    """Each channel's histogram made even, as PIL does: levels by the pixels below them, in steps of a 255th."""
    tables = np.empty((256, 3))
    for channel, counts in enumerate(_counts(image).T):
        step = (counts.sum() - counts[counts > 0][-1]) // 255
        below = np.cumsum(counts) - counts
        tables[:, channel] = _LEVELS if step == 0 else (below + step // 2) // step
    return _looked_up(image, tables)


def posterize(image: Image, bits: int) -> Image:
    """Only the highest `bits` of each level."""
    return np.asarray(image & np.uint8(256 - (1 << (8 - bits))), np.uint8)


def solarize(image: Image, threshold: float) -> Image:
    """Levels from `threshold` up are inverted."""
    return _looked_up(image, np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS))


def solarize_add(image: Image, addition: float) -> Image:
    """Levels below 128 get brighter by `addition`."""
    return _looked_up(image, np.where(_LEVELS < 128, _LEVELS + addition, _LEVELS))


PHOTOMETRIC: dict[str, Callable[[Image, float], Image]] = {
    "identity": lambda image, level: image,
    "brightness": lambda image, level: brightness(image, 1 + level),
    "contrast": lambda image, level: contrast(image, 1 + level),
    "color": lambda image, level: color(image, 1 + level),
    "sharpness": lambda image, level: sharpness(image, 1 + level),
    "autocontrast": lambda image, level: autocontrast(image),
    "equalize": lambda image, level: equalize(image),
    "posterize": lambda image, level: posterize(image, 8 - round(4 * abs(level))),
    "solarize": lambda image, level: solarize(image, 256 - 256 * abs(level)),
    "solarize_add": lambda image, level: solarize_add(image, 110 * abs(level)),
}
"""By name, each with a strength from -1 to 1, where 0 changes nothing. Autocontrast and equalize have no strength."""
