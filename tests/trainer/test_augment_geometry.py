"""Boxes stay on their pixels, measured in the pixels, through crops, shifts, shears, turns and mosaics."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.images.image import FILL, FixedSize, ShortSide
from tests.trainer.pixels import extent
from tests.trainer.tiny import InOrder
from trainer.augment import augment, resized_placement
from trainer.augment.crop import random_crop
from trainer.augment.geometry import Picture, Placement, affine, flip_vertical, random_size
from trainer.augment.mixing import mixup, mosaic, mosaic_tiles
from trainer.augment.policy import V0, Step, affine_matrix, apply_to_picture, auto_steps, trivial_steps
from trainer.augment.sources import Sources
from trainer.config.augment_sections import (
    OPERATIONS,
    AutoConfig,
    CropConfig,
    MixupConfig,
    MosaicConfig,
    MultiScaleConfig,
    TrivialConfig,
)
from trainer.config.train import AugmentConfig

SIDES = st.integers(40, 160)
SEEDS = st.integers(0, 2**31)
BLACK = (0, 0, 0)
COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def scene(height: int, width: int, seed: int) -> Picture:
    """Black, with a rectangle of one color each in three columns that do not touch; label = color's channel."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    boxes = []
    for i in range(3):
        x0 = i * width // 3
        w, h = int(rng.integers(6, width // 3 - 2)), int(rng.integers(6, height - 2))
        x, y = x0 + int(rng.integers(width // 3 - w)), int(rng.integers(height - h))
        image[y : y + h, x : x + w, i] = 255
        boxes.append((x, y, x + w, y + h))
    return Picture(image, np.array(boxes, np.float32), np.arange(3))


def check_exact(picture: Picture) -> None:
    """Every rectangle that can be seen has its box, cut by the picture's edges, to the pixel."""
    height, width = picture.image.shape[:2]
    for box, label in zip(picture.boxes_xyxy, picture.labels, strict=True):
        clipped = np.clip(box, 0, [width, height, width, height])
        found = extent(picture.image[:, :, label] > 127)
        assert (found is None) == (min(clipped[2] - clipped[0], clipped[3] - clipped[1]) <= 0)
        assert found is None or clipped.tolist() == found


@given(SIDES, SIDES, SEEDS)
def test_crop_is_exact_and_keeps_its_promise(h, w, seed):
    picture = scene(h, w, seed)
    config = CropConfig(probability=1, sides=(0.3, 0.9), least=(0.6,))
    cropped = random_crop(picture, config, np.random.default_rng(seed))
    check_exact(cropped)
    height, width = cropped.image.shape[:2]
    inside = np.clip(cropped.boxes_xyxy, 0, [width, height, width, height])
    share = (inside[:, 2:] - inside[:, :2]).prod(1) / (picture.boxes_xyxy[:, 2:] - picture.boxes_xyxy[:, :2]).prod(1)
    assert (share > 0).any() and ((share == 0) | (share >= 0.6 - 1e-6)).all()
    if (height, width) != (h, w):  # it found a place
        assert 0.3 * h - 1 <= height <= 0.9 * h + 1 and 0.3 * w - 1 <= width <= 0.9 * w + 1


def test_crops_find_a_small_object_that_iou_never_would():
    image = np.zeros((200, 200, 3), np.uint8)
    small = Picture(image, np.array([[90, 90, 96, 96]], np.float32), np.array([0]))
    sizes = {}
    for measure in ("share", "iou"):
        config = CropConfig(probability=1, sides=(0.3, 0.6), least=(0.5,), measure=measure)
        crops = [random_crop(small, config, np.random.default_rng(seed)).image.shape for seed in range(60)]
        sizes[measure] = {shape != image.shape for shape in crops}
    assert sizes == {"share": {True}, "iou": {False}}  # 36 of 3600 square pixels: an IoU of 0.01 at best


def test_crop_without_objects_and_around_ignored_regions():
    empty = Picture(np.zeros((80, 80, 3), np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    config = CropConfig(probability=1, sides=(0.5, 0.5), aspect=(1, 1))
    assert random_crop(empty, config, np.random.default_rng(0)).image.shape == (40, 40, 3)
    region = empty._replace(boxes_xyxy=np.array([[0, 0, 80, 80]], np.float32), labels=np.array([-2]))
    cropped = random_crop(region, config, np.random.default_rng(0))  # no promise to a region: it is cut, not kept whole
    assert cropped.image.shape == (40, 40, 3) and cropped.labels.tolist() == [-2]


@given(SIDES, SIDES, SEEDS)
def test_vertical_flip_is_exact(h, w, seed):
    picture = scene(h, w, seed)
    check_exact(Picture(*flip_vertical(picture.image, picture.boxes_xyxy), picture.labels))


@given(SIDES, SIDES, SEEDS, st.sampled_from(["translate_x", "translate_y"]), st.floats(-0.6, 0.6))
def test_shifts_are_exact(h, w, seed, name, strength):
    moved, effects = apply_to_picture(scene(h, w, seed), [Step(name, strength)], BLACK, np.random.default_rng(0))
    check_exact(moved)
    assert effects == [] and (abs(strength) < 0.05 or not np.array_equal(moved.image, scene(h, w, seed).image))


@given(SIDES, SIDES, SEEDS, st.sampled_from(["shear_x", "shear_y", "rotate"]), st.floats(-1, 1))
def test_shears_and_turns_give_the_hull(h, w, seed, name, level):
    picture = scene(h, w, seed)
    moved = affine(picture, affine_matrix(name, level * (30 if name == "rotate" else 0.3), (h, w)), BLACK)
    for box, label in zip(moved.boxes_xyxy, moved.labels, strict=True):
        found = extent(moved.image[:, :, label] > 20)
        if found is None or min(found[:2]) == 0 or found[2] == w or found[3] == h:
            continue  # cut by the picture's edge: the hull is of what would be there
        # Nothing outside the hull but half a pixel of interpolation; nothing missing but the tips of sharp corners.
        assert (np.array(found[:2]) >= box[:2] - 1).all() and (np.array(found[2:]) <= box[2:] + 1).all()
        assert np.abs(np.array(found) - box).max() <= 2.5


def test_a_turn_by_hand():
    image = np.zeros((100, 100, 3), np.uint8)
    picture = Picture(image, np.array([[60, 40, 80, 60]], np.float32), np.array([0]))
    moved = affine(picture, affine_matrix("rotate", 90.0, (100, 100)), BLACK)
    np.testing.assert_allclose(moved.boxes_xyxy, [[40, 60, 60, 80]], atol=1e-4)  # clockwise, y points down
    turned = affine(picture, affine_matrix("rotate", 45.0, (100, 100)), BLACK)
    middle, half = 50 + 20 / np.sqrt(2), 20 / np.sqrt(2)
    expected = [[middle - half, middle - half, middle + half, middle + half]]
    np.testing.assert_allclose(turned.boxes_xyxy, expected, atol=1e-4)


@given(SEEDS, st.sampled_from([(96, 96), (64, 128)]))
def test_mosaic_tiles_the_input_and_boxes_stay_on_their_pixels(seed, size_hw):
    rng = np.random.default_rng(seed)
    covered = np.zeros(size_hw, int)
    for x0, y0, x1, y1 in mosaic_tiles(size_hw, MosaicConfig(), rng):
        covered[y0:y1, x0:x1] += 1
    assert (covered == 1).all()
    # Each picture in a channel of its own, so that all can be found again.
    pictures: list[Picture | None] = [None]
    for channel in range(3):
        image = np.zeros((60 + channel, 80, 3), np.uint8)
        image[20:50, 10:60, channel] = 255
        pictures.append(Picture(image, np.array([[10, 20, 60, 50]], np.float32), np.array([channel])))
    config = AugmentConfig(flip=0, scale_probability=0, color_probability=0, min_visible=0.0,
                           mosaic=MosaicConfig(probability=1))  # fmt: skip
    sources = Sources(InOrder(pictures[1:] * 2))
    none = np.zeros((0, 4), np.float32)
    view = Picture(*augment(np.zeros((50, 50, 3), np.uint8), none, np.zeros(0, np.int64), FixedSize(size_hw), config,
                            np.random.default_rng(seed), sources))  # fmt: skip
    image = np.where((view.image == FILL).all(2, keepdims=True), 0, view.image)
    for channel in range(3):
        found, mine = extent(image[:, :, channel] > 127), view.boxes_xyxy[view.labels == channel]
        assert len(mine) <= 1
        if len(mine):
            assert found is not None and np.abs(np.array(found) - mine[0]).max() <= 1.0
        else:
            assert found is None or min(found[2] - found[0], found[3] - found[1]) <= 2


def test_mosaic_leaves_an_unreadable_picture_gray():
    config = MosaicConfig(probability=1)

    def view(picture: Picture, placement: Placement) -> Picture:
        return Picture(placement.apply(picture.image), picture.boxes_xyxy, picture.labels)

    out = mosaic([None] * 4, (64, 64), (1, 2, 3), config, np.random.default_rng(0), view)
    assert (out.image == (1, 2, 3)).all() and out.boxes_xyxy.shape == (0, 4) and out.labels.dtype == np.int64


@given(SEEDS, st.floats(0.2, 50))
def test_mixup_is_the_weighted_mean_and_keeps_all(seed, alpha):
    one, two = scene(40, 40, seed), scene(40, 40, seed + 1)
    mixed = mixup(one, two, MixupConfig(probability=1, alpha=alpha), np.random.default_rng(seed))
    weight = np.random.default_rng(seed).beta(alpha, alpha)
    assert np.abs(mixed.image - (one.image * weight + two.image * (1 - weight))).max() <= 0.5 + 1e-3
    assert mixed.labels.tolist() == [0, 1, 2] * 2
    assert np.array_equal(mixed.boxes_xyxy, np.concatenate([one.boxes_xyxy, two.boxes_xyxy]))


@given(SEEDS)
def test_multi_scale_follows_the_resize_rule(seed):
    config = MultiScaleConfig(probability=1, factor=(0.5, 1.5))
    fixed = random_size(FixedSize((96, 160), (1, 2, 3)), config, np.random.default_rng(seed))
    assert isinstance(fixed, FixedSize) and fixed.fill_bgr == (1, 2, 3)
    assert all(side % 32 == 0 and 0.5 * full - 16 <= side <= 1.5 * full + 16
               for side, full in zip(fixed.size_hw, (96, 160), strict=True))  # fmt: skip
    short = random_size(ShortSide(80, 133, 32, True, (0, 0, 0)), config, np.random.default_rng(seed))
    assert isinstance(short, ShortSide) and 40 <= short.short <= 120 and abs(short.long / short.short - 133 / 80) < 0.05
    placed = resized_placement((300, 400), short)
    assert min(placed.resized_hw) in (short.short, short.short - 1) and all(s % 32 == 0 for s in placed.size_hw)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_runs_on_any_picture_and_level_zero_keeps_boxes(name):
    for height, width in ((1, 1), (2, 50), (60, 40)):
        rng = np.random.default_rng(height)
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        boxes = np.array([[0, 0, width, height], [0, 0, 0.5, 0.5]], np.float32)
        for level in (0.0, 5.0, 10.0):
            config = AutoConfig(probability=1, policy=(((name, 1.0, level),),))
            steps = auto_steps(config, rng)
            picture, effects = apply_to_picture(Picture(image, boxes, np.array([0, 1])), steps, BLACK, rng)
            for effect in effects:
                assert effect(image).shape == image.shape and effect(image).dtype == np.uint8
            assert picture.image.shape == image.shape and picture.image.dtype == np.uint8
            if level == 0 or name.endswith("_boxes"):
                np.testing.assert_allclose(picture.boxes_xyxy, boxes, atol=1e-4)


@settings(max_examples=20)
@given(SEEDS)
def test_operations_within_boxes_leave_the_rest_and_ignored_regions_alone(seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (60, 80, 3), np.uint8)
    boxes = np.array([[5.5, 5, 30, 30], [40, 10, 70.2, 50]], np.float32)
    step = Step("rotate_boxes", 25.0)
    out, _ = apply_to_picture(Picture(image, boxes, np.array([0, -2])), [step], BLACK, rng)
    changed = (out.image != image).any(2)
    assert changed[5:30, 5:30].any() and not changed[:, 30:].any() and not changed[30:].any() and not changed[:5].any()
    assert np.array_equal(out.boxes_xyxy, boxes)


def test_policies_draw_what_they_say():
    rng = np.random.default_rng(0)
    trivial = [trivial_steps(TrivialConfig(probability=1, strength=0.5), rng)[0] for _ in range(600)]
    geometry = {"shear_x", "shear_y", "translate_x", "translate_y", "rotate"}
    assert {s.name for s in trivial} == set(OPERATIONS[:9]) | geometry
    assert 10 < max(abs(s.strength) for s in trivial if s.name == "rotate") <= 15
    color = TrivialConfig(probability=1, geometric=False)
    assert {trivial_steps(color, rng)[0].name for _ in range(300)} == set(OPERATIONS[:9])
    auto = [step for _ in range(2000) for step in auto_steps(AutoConfig(probability=1), rng)]
    assert {s.name for s in auto} == {name for steps in V0 for name, probability, _ in steps if probability}
    count = sum(s.name == "equalize" for s in auto)
    assert abs(count / 2000 - 0.8 / 5) < 0.03
    assert {round(s.strength, 3) for s in auto if s.name == "translate_x"} == {0.156, -0.156}  # 4/10 of 250 px at 640
    assert {round(s.strength, 3) for s in auto if s.name == "color"} == {0.18}  # the factor 1.18 of level 6
    assert {round(s.box_probability, 3) for s in auto if s.name.endswith("_boxes")} == {0.067, 0.2}
