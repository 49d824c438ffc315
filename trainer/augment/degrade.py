"""What lenses, sensors and codecs do to a picture: blur, noise, JPEG. uint8 [h,w,3] BGR in and out."""

from __future__ import annotations

from statistics import NormalDist

import cv2
import numpy as np

from runtime.images.image import Image
from trainer.augment.geometry import log_uniform
from trainer.config.augment_sections import BlurConfig, JpegConfig, NoiseConfig

_QUANTILES = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)])
_QUANTILES /= _QUANTILES.std()


def blur(image: Image, config: BlurConfig, rng: np.random.Generator) -> Image:
    """Out of focus (a Gaussian), or moved (the mean along a line of any direction)."""
    if rng.random() >= config.motion:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), log_uniform(config.sigma, rng)), np.uint8)
    kernel = _line(rng.uniform(*config.length), rng.uniform(0, np.pi))
    return np.asarray(cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT), np.uint8)


def _line(length: float, angle: float) -> np.ndarray:
    """A kernel [k,k] of sum 1: a line of `length` pixels through the center, sampled densely."""
    half = int(np.ceil(length / 2))
    kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float64)
    along = np.linspace(-(length - 1) / 2, (length - 1) / 2, 8 * half + 1)
    x, y = half + along * np.cos(angle), half + along * np.sin(angle)
    np.add.at(kernel, (np.rint(y).astype(int), np.rint(x).astype(int)), 1.0)
    return kernel / kernel.sum()


def noise(image: Image, config: NoiseConfig, rng: np.random.Generator) -> Image:
    """Gaussian noise in 256 steps (its 256 quantiles, drawn as bytes: ten times faster than normal numbers)."""
    h, w = image.shape[:2]
    steps = np.rint(_QUANTILES * log_uniform(config.sigma, rng))
    channels = 1 if rng.random() < config.gray else 3
    drawn: Image = np.frombuffer(rng.bytes(h * w * channels), np.uint8).reshape(h, w, channels)
    if channels == 1:
        drawn = np.asarray(cv2.cvtColor(drawn, cv2.COLOR_GRAY2BGR), np.uint8)
    # Brightening and darkening are separate steps: both are bytes then, for which OpenCV is fastest.
    more, less = (np.clip(sign * steps, 0, 255).astype(np.uint8) for sign in (1, -1))
    return np.asarray(cv2.subtract(cv2.add(image, cv2.LUT(drawn, more)), cv2.LUT(drawn, less)), np.uint8)


def jpeg(image: Image, config: JpegConfig, rng: np.random.Generator) -> Image:
    """Compressed and decoded."""
    quality = int(rng.integers(config.quality[0], config.quality[1] + 1))
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"a picture of {image.shape} cannot be encoded as JPEG")
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
