"""Drawn pictures that differ from each other as photographs of one kind of scene do."""

from __future__ import annotations

import cv2
import numpy as np

from runtime.images.image import Image


def scene(seed: int, size_hw: tuple[int, int] = (240, 320)) -> Image:
    """Cells on a light ground: 25 dark discs in random places, with shading and noise, uint8 [H,W,3]."""
    rng = np.random.default_rng(seed)
    height, width = size_hw
    image = np.full((height, width, 3), (210, 200, 215), np.uint8)
    for x, y, radius in zip(
        rng.integers(0, width, 25), rng.integers(0, height, 25), rng.integers(8, 30, 25), strict=True
    ):
        color = [int(value) for value in rng.integers(60, 180, 3)]
        cv2.circle(image, (int(x), int(y)), int(radius), color, -1)
    noise = rng.normal(0, 4, image.shape)
    return np.clip(cv2.GaussianBlur(image, (0, 0), 1.5) + noise, 0, 255).astype(np.uint8)


def copies(image: Image) -> dict[str, Image]:
    """The picture encoded again, at other sizes, and a little brighter."""
    height, width = image.shape[:2]
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1]
    return {
        "encoded": np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8),
        "half": np.asarray(cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA), np.uint8),
        "square": np.asarray(cv2.resize(image, (256, 256)), np.uint8),
        "brighter": np.asarray(cv2.convertScaleAbs(image, alpha=1.06, beta=8), np.uint8),
    }
