"""Augmentation keeps boxes on their pixels, and does nothing where nothing fires."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.images.image import FILL, FixedSize, letterbox
from tests.trainer.pixels import extent
from trainer.augment import augment, flip_horizontal, jitter_color, random_placement, visible_boxes
from trainer.config.train import AugmentConfig

NO_COLOR = {"color_probability": 0.0}
SIDES = st.integers(40, 200)
SEEDS = st.integers(0, 2**31)


def _picture(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A black picture with one white rectangle, and its box."""
    rng = np.random.default_rng(seed)
    h, w = int(rng.integers(8, height // 2)), int(rng.integers(8, width // 2))
    y, x = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
    image = np.zeros((height, width, 3), np.uint8)
    image[y : y + h, x : x + w] = 255
    return image, np.array([[x, y, x + w, y + h]], np.float32)


@given(SIDES, SIDES, SEEDS, st.sampled_from([(96, 96), (64, 128), (160, 96)]))
def test_a_rectangle_stays_in_its_box_within_a_pixel(h, w, seed, size_hw):
    image, boxes = _picture(h, w, seed)
    config = AugmentConfig(flip=0.5, scale_probability=0.8, scale=(0.5, 2.0), min_visible=0.0, **NO_COLOR)
    view, moved, labels = augment(image, boxes, np.array([3]), FixedSize(size_hw), config, np.random.default_rng(seed))
    assert view.shape == (*size_hw, 3) and view.dtype == np.uint8 and moved.dtype == np.float32
    white = view[:, :, 0] > 127
    white &= ~(view == FILL).all(2)
    if len(moved) == 0:  # cropped away: what is left is thinner than a pixel
        assert min(np.count_nonzero(white.any(axis)) for axis in (0, 1)) <= 2
        return
    assert labels.tolist() == [3] and np.abs(moved[0] - extent(white)).max() <= 1.0


@given(SIDES, SIDES, SEEDS)
def test_flip_twice_is_the_identity(h, w, seed):
    image, boxes = _picture(h, w, seed)
    image_before, boxes_before = image.copy(), boxes.copy()
    once_image, once_boxes = flip_horizontal(image, boxes)
    again_image, again_boxes = flip_horizontal(once_image, once_boxes)
    assert np.array_equal(again_image, image) and np.array_equal(again_boxes, boxes)
    assert np.array_equal(image, image_before) and np.array_equal(boxes, boxes_before)
    x0, y0, x1, y1 = once_boxes[0].astype(int)
    assert once_image[y0:y1, x0:x1].all() and once_image.sum() == 255 * 3 * (y1 - y0) * (x1 - x0)


@given(SIDES, SIDES, SEEDS, st.sampled_from([(96, 96), (64, 128), (160, 96)]))
def test_nothing_fires_gives_the_deployed_letterbox_bit_for_bit(h, w, seed, size_hw):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (h, w, 3), np.uint8)
    boxes = np.array([[0, 0, w, h], [1, 2, 30, 20]], np.float32)
    config = AugmentConfig(flip=0, scale_probability=0, **NO_COLOR)
    view, moved, _ = augment(image, boxes, np.arange(2), FixedSize(size_hw), config, rng)
    expected, placement = letterbox(image, size_hw)
    assert np.array_equal(view, expected)
    np.testing.assert_allclose(moved, placement.to_input(boxes), atol=1e-4)


@given(SEEDS)
def test_arguments_are_not_changed_and_one_generator_gives_one_view(seed):
    image = np.random.default_rng(seed).integers(0, 256, (70, 90, 3), np.uint8)
    boxes, labels = np.array([[5, 5, 60, 60]], np.float32), np.array([1])
    kept = image.copy(), boxes.copy(), labels.copy()
    a = augment(image, boxes, labels, FixedSize((96, 96)), AugmentConfig(), np.random.default_rng(seed))
    b = augment(image, boxes, labels, FixedSize((96, 96)), AugmentConfig(), np.random.default_rng(seed))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert all(np.array_equal(x, y) for x, y in zip((image, boxes, labels), kept, strict=True))


def augmented(image: np.ndarray, boxes: list, config: AugmentConfig, seed: int) -> tuple[np.ndarray, ...]:
    """`augment` for an input of 64x64 px."""
    boxes_xyxy, labels = np.array(boxes, np.float32).reshape(-1, 4), np.arange(len(boxes))
    return augment(image, boxes_xyxy, labels, FixedSize((64, 64)), config, np.random.default_rng(seed))


def test_no_boxes_and_all_boxes_cropped():
    image = np.zeros((64, 64, 3), np.uint8)
    for seed in range(10):
        _, boxes, labels = augmented(image, [], AugmentConfig(), seed)
        assert boxes.shape == (0, 4) and labels.shape == (0,)
    config = AugmentConfig(flip=0, scale=(4.0, 4.0), min_visible=1.0)
    sizes = set()
    for seed in range(20):
        _, boxes, labels = augmented(image, [[0, 0, 3, 3]], config, seed)
        assert boxes.shape == (len(labels), 4)
        sizes.add(len(labels))
    assert 0 in sizes


def test_visible_boxes_by_hand():
    boxes = np.array(
        [[0, 0, 10, 10], [-5, 0, 5, 10], [-8, 0, 2, 10], [90, 0, 130, 20], [200, 0, 210, 10], [5, 5, 5.5, 50]],
        np.float32,
    )
    clipped, keep = visible_boxes(boxes, (50, 100), 0.3)
    assert keep.tolist() == [True, True, False, False, False, False]  # whole, 50 %, 20 %, 25 %, outside, half a pixel
    assert clipped[1].tolist() == [0, 0, 5, 10]
    assert (clipped >= 0).all() and (clipped[:, ::2] <= 100).all() and (clipped[:, 1::2] <= 50).all()
    assert visible_boxes(boxes[:0], (50, 100), 0.3)[1].shape == (0,)


def test_placement_covers_the_whole_range_of_scales_and_places():
    rng = np.random.default_rng(0)
    placements = [random_placement((100, 200), (64, 64), (0.5, 2.0), rng) for _ in range(300)]
    widths = np.array([p.resized_hw[1] for p in placements])
    assert widths.min() >= 32 and widths.max() <= 128 and widths.min() < 36 and widths.max() > 118
    for p in placements:
        rows, columns = p.window
        assert 0 <= rows.start < rows.stop <= 64 and 0 <= columns.start < columns.stop <= 64
        # Either the picture is inside the input, or it covers all of that axis.
        assert p.resized_hw[1] <= 64 or (columns.start, columns.stop) == (0, 64)
        assert p.resized_hw[0] <= 64 or (rows.start, rows.stop) == (0, 64)


@pytest.mark.parametrize("key", ["brightness", "contrast", "saturation", "hue"])
def test_each_color_strength_works_alone(key):
    off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    image = np.random.default_rng(0).integers(60, 180, (32, 32, 3), np.uint8)
    assert np.array_equal(jitter_color(image, AugmentConfig(**off), np.random.default_rng(1)), image)
    config = AugmentConfig(**(off | {key: 0.4}))
    gray = np.full((8, 8, 3), 100, np.uint8)
    moved, gray_moved = [], []
    for seed in range(5):
        moved.append(np.abs(jitter_color(image, config, np.random.default_rng(seed)).astype(int) - image).mean())
        gray_moved.append(np.abs(jitter_color(gray, config, np.random.default_rng(seed)).astype(int) - gray).max())
    assert max(moved) > 5
    # Saturation and hue leave gray alone, contrast leaves the picture's mean; brightness moves all.
    assert max(gray_moved) > 5 if key == "brightness" else max(gray_moved) <= 1


def test_the_gray_border_is_not_recolored():
    image = np.full((40, 80, 3), 30, np.uint8)
    config = AugmentConfig(flip=0, scale_probability=0, color_probability=1.0, brightness=0.9)
    view, _, _ = augmented(image, [], config, seed=2)
    assert (view[32:] == FILL).all() and not (view[:32] == 30).all()
