"""Color operations are those of torchvision; blur, noise and JPEG do what their numbers say."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from runtime.images.image import Image
from trainer.augment import color
from trainer.augment.degrade import blur, jpeg, noise
from trainer.config.augment_sections import BlurConfig, DistortConfig, JpegConfig, NoiseConfig


def photo(seed: int, height: int = 40, width: int = 50) -> Image:
    """Smooth colors with noise, not using all levels."""
    rng = np.random.default_rng(seed)
    smooth = cv2.resize(rng.uniform(20, 200, (4, 4, 3)).astype(np.float32), (width, height))
    return np.clip(smooth + rng.normal(0, 6, smooth.shape), 10, 230).astype(np.uint8)


def theirs(operation: Callable[[torch.Tensor], torch.Tensor], image: Image) -> np.ndarray:
    rgb = torch.from_numpy(np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1)))
    return operation(rgb).numpy().transpose(1, 2, 0)[:, :, ::-1]


@pytest.mark.parametrize(
    ("name", "ours", "reference", "tolerance"),
    [
        ("brightness", lambda x: color.brightness(x, 1.4), lambda x: functional.adjust_brightness(x, 1.4), 1),
        ("contrast", lambda x: color.contrast(x, 0.4), lambda x: functional.adjust_contrast(x, 0.4), 2),
        ("color", lambda x: color.color(x, 1.7), lambda x: functional.adjust_saturation(x, 1.7), 2),
        ("sharpness", lambda x: color.sharpness(x, 1.9), lambda x: functional.adjust_sharpness(x, 1.9), 2),
        ("autocontrast", color.autocontrast, functional.autocontrast, 1),
        ("equalize", color.equalize, functional.equalize, 0),
        ("posterize", lambda x: color.posterize(x, 5), lambda x: functional.posterize(x, 5), 0),
        ("solarize", lambda x: color.solarize(x, 100), lambda x: functional.solarize(x, 100), 0),
    ],
)
def test_operations_against_torchvision(name, ours, reference, tolerance):
    constant = np.full((8, 9, 3), (30, 30, 200), np.uint8)
    for image in (photo(0), photo(1, 3, 3), constant):
        before = image.copy()
        mine, other = ours(image), theirs(reference, image)
        assert mine.dtype == np.uint8 and np.abs(mine.astype(int) - other).max() <= tolerance
        assert np.array_equal(image, before)
    assert not np.array_equal(ours(photo(0)), photo(0)), name


def test_solarize_add_by_hand():
    image = np.array([[[10, 127, 128]]], np.uint8)
    assert color.solarize_add(image, 50).tolist() == [[[60, 177, 128]]]


def test_distort():
    image = photo(2)
    only_gamma = DistortConfig(probability=1, gamma=(2, 2), gray=0, shuffle=0)
    expected = np.rint(255 * (image / 255.0) ** 2)
    assert np.array_equal(color.distort(image, only_gamma, np.random.default_rng(0)), expected)
    gray = color.distort(image, DistortConfig(probability=1, gamma=(1, 1), gray=1, shuffle=0), np.random.default_rng(0))
    assert np.ptp(gray, axis=2).max() == 0 and gray.std() > 5
    shuffled = DistortConfig(probability=1, gamma=(1, 1), gray=0, shuffle=1)
    orders = {
        tuple(int(np.flatnonzero((image == out[:, :, [c]]).all((0, 1)))[0]) for c in range(3))
        for out in (color.distort(image, shuffled, np.random.default_rng(seed)) for seed in range(40))
    }
    assert len(orders) == 6


def test_noise_has_its_standard_deviation_and_no_mean():
    image = np.full((200, 200, 3), 128, np.uint8)
    for gray in (0.0, 1.0):
        out = noise(image, NoiseConfig(probability=1, sigma=(10, 10), gray=gray), np.random.default_rng(0)) - 128.0
        assert abs(out.std() - 10) < 0.2 and abs(out.mean()) < 0.1
        assert (np.ptp(out, axis=2).max() == 0) == bool(gray)
    dark = noise(image * 0, NoiseConfig(probability=1, sigma=(50, 50)), np.random.default_rng(0))
    assert dark.max() > 50 and (dark == 0).mean() > 0.4  # saturates, and does not come round to white


def test_blur_spreads_a_point_and_keeps_its_light():
    point = np.zeros((41, 41, 3), np.uint8)
    point[20, 20] = 255
    gauss = blur(point, BlurConfig(probability=1, sigma=(1.5, 1.5), motion=0), np.random.default_rng(0)).astype(float)
    assert abs(gauss[:, :, 0].sum() - 255) < 20
    spread = np.sqrt((gauss[:, :, 0].sum(0) * (np.arange(41) - 20) ** 2).sum() / gauss[:, :, 0].sum())
    assert abs(spread - 1.5) < 0.2
    for seed in range(5):
        config = BlurConfig(probability=1, motion=1, length=(9, 9))
        line = blur(point, config, np.random.default_rng(seed))[:, :, 0].astype(float)
        y, x = np.nonzero(line)
        assert abs(line.sum() - 255) < 15 and np.hypot(np.ptp(y), np.ptp(x)) == pytest.approx(8, abs=1.2)
        assert abs(y.mean() - 20) < 0.3 and abs(x.mean() - 20) < 0.3  # stays where it is
    flat = np.full((20, 30, 3), 77, np.uint8)
    for motion in (0, 1):
        assert np.array_equal(blur(flat, BlurConfig(probability=1, motion=motion), np.random.default_rng(0)), flat)


def test_jpeg_loses_more_at_lower_quality_and_takes_any_size():
    image = photo(3, 64, 64)
    rng = np.random.default_rng(0)
    views = [jpeg(image, JpegConfig(probability=1, quality=(q, q)), rng) for q in (10, 50, 95)]
    losses = [np.abs(view.astype(int) - image).mean() for view in views]
    assert losses[0] > losses[1] > losses[2] > 0
    assert jpeg(image[:1, :3], JpegConfig(probability=1), np.random.default_rng(0)).shape == (1, 3, 3)
