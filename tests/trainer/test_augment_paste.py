"""Pasted rectangles are where their boxes say, hide what they say, and nothing lands on regions to be ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.trainer.pixels import extent
from tests.trainer.tiny import InOrder
from trainer.augment.geometry import Picture
from trainer.augment.paste import Patch, cut_patch, paste, paste_all, uncovered
from trainer.augment.sources import Sources, copyable
from trainer.config.augment_sections import CopyPasteConfig, HardNegativesConfig
from trainer.prepare.negatives import Negative

SEEDS = st.integers(0, 2**31)


def copy(**changes: Any) -> CopyPasteConfig:
    return CopyPasteConfig(**({"probability": 1.0, "scale": (1.0, 1.0)} | changes))


def negatives(**changes: Any) -> HardNegativesConfig:
    return HardNegativesConfig(**({"probability": 1.0, "file": "x.json", "scale": (1.0, 1.0)} | changes))


def picture(boxes: list[list[float]], labels: list[int], size_hw: tuple[int, int] = (100, 120)) -> Picture:
    image = np.full((*size_hw, 3), 50, np.uint8)
    return Picture(image, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, int))


def red_patch(rng: np.random.Generator, label: int = 4, margin: float = 0.3) -> tuple[Patch, tuple[int, int]]:
    """A red rectangle at any place of a gray picture of 100x120, cut out; and its height and width."""
    h, w = int(rng.integers(6, 40)), int(rng.integers(6, 40))
    y, x = int(rng.integers(0, 100 - h + 1)), int(rng.integers(0, 120 - w + 1))
    source = np.full((100, 120, 3), 50, np.uint8)
    source[y : y + h, x : x + w] = (0, 0, 255)
    return cut_patch(source, np.array([x, y, x + w, y + h], float), label, margin), (h, w)


@given(SEEDS, st.sampled_from(["same_height", "anywhere"]))
def test_a_pasted_object_is_exactly_in_its_box(seed, place):
    rng = np.random.default_rng(seed)
    patch, (h, w) = red_patch(rng)
    below = picture([], [])
    result = paste(below, patch, copy(place=place), rng)
    assert result is not None
    out, hidden = result
    red = (out.image == (0, 0, 255)).all(2)
    found = extent(red)
    assert out.boxes_xyxy.tolist() == [found] == [hidden.tolist()] and out.labels.tolist() == [4]
    assert red.sum() == h * w and (below.image == 50).all()
    if place == "same_height":
        assert abs((found[1] + found[3]) / 200 - patch.height_share) <= 0.05 + 0.01 or found[1] == 0 or found[3] == 100


@given(SEEDS)
def test_size_follows_the_picture_and_boxes_stay_exact(seed):
    rng = np.random.default_rng(seed)
    patch, (h, w) = red_patch(rng, margin=0.5)
    result = paste(picture([], [], (300, 400)), patch, copy(scale=(0.5, 1.2)), rng)
    assert result is not None
    out = result[0]
    red = out.image[:, :, 2] > 150  # half way between 50 and 255
    assert np.abs(out.boxes_xyxy[0] - extent(red)).max() <= 1.0
    assert 0.45 * 3 <= (out.boxes_xyxy[0, 3] - out.boxes_xyxy[0, 1]) / h <= 1.25 * 3


@given(SEEDS)
def test_surroundings_fade_and_poisson_keeps_the_place(seed):
    source = np.full((100, 120, 3), 200, np.uint8)
    source[40:60, 40:70] = (90, 90, 255)
    patch = cut_patch(source, np.array([40, 40, 70, 60], float), 0, 0.5)
    assert patch.image.shape == (40, 60, 3)
    for blend in ("feather", "poisson"):
        result = paste(picture([], []), patch, copy(blend=blend), np.random.default_rng(seed))
        assert result is not None
        out = result[0]
        x0, y0, x1, y1 = out.boxes_xyxy[0].astype(int)
        red = out.image[:, :, 2].astype(int) - out.image[:, :, 0]  # the surroundings are gray, in either blend
        assert extent(red > 80) == [x0, y0, x1, y1]
        line = out.image[(y0 + y1) // 2, x1 + 1 : x1 + 15, 0].astype(int)  # from the box to the picture's 50
        assert (np.diff(line) <= 1).all() and line[-1] < 75
        assert (out.image[:, : max(x0 - 16, 0)] == 50).all() and (out.image[:, x1 + 16 :] == 50).all()
    assert abs(int(out.image[:, :, 0][y0 - 8 : y1 + 8, x0 - 12].mean()) - 50) < 15  # poisson took over the new light


@given(SEEDS)
@example(0)
def test_nothing_is_pasted_onto_ignored_regions_nor_negatives_onto_objects(seed):
    rng = np.random.default_rng(seed)
    below = picture([[0, 0, 60, 100], [70, 10, 110, 30]], [-2, 1])
    before = below.image.copy()
    patch, _ = red_patch(rng)
    result = paste(below, patch, copy(max_cover=0.9), rng)
    assert result is not None or seed != 0  # with 0 both find a place
    if result is not None:
        assert np.array_equal(result[0].image[:, :60], before[:, :60])
        assert result[0].labels.tolist() == [-2, 1, 4]
    background, _ = red_patch(rng, label=-1)
    result = paste(below, background, negatives(empty_only=False), rng)
    assert result is not None or seed != 0
    if result is not None:
        assert result[0].labels.tolist() == [-2, 1] and np.array_equal(result[0].boxes_xyxy, below.boxes_xyxy)
        assert np.array_equal(result[0].image[:, :60], before[:, :60])
        assert np.array_equal(result[0].image[10:30, 70:110], before[10:30, 70:110])
        assert not np.array_equal(result[0].image, before)


def test_no_place_is_no_paste():
    rng = np.random.default_rng(0)
    patch, _ = red_patch(rng)
    assert paste(picture([[0, 0, 120, 100]], [-2]), patch, copy(), rng) is None
    assert paste(picture([], [], (3, 3)), patch, copy(), rng) is None  # too small to be seen
    wide = cut_patch(np.zeros((10, 400, 3), np.uint8), np.array([0, 0, 400, 10], float), 1, 0.0)
    assert paste(picture([], []), wide, copy(), rng) is None
    assert paste_all(picture([], []), [None, None], copy(), 0.3, rng).labels.tolist() == []


@pytest.mark.parametrize(
    ("hidden", "left", "share"),
    [
        ((200, 200, 210, 210), (10, 20, 50, 60), 0.0),  # elsewhere
        ((0, 0, 30, 100), (30, 20, 50, 60), 0.5),  # its left half
        ((30, 20, 50, 60), (10, 20, 30, 60), 0.5),  # its right half, exactly
        ((5, 10, 60, 30), (10, 30, 50, 60), 0.25),  # its top
        ((5, 50, 60, 70), (10, 20, 50, 50), 0.25),  # its bottom
        ((5, 30, 60, 50), (10, 20, 50, 60), 0.5),  # a band across: both ends can be seen
        ((0, 0, 30, 40), (10, 20, 50, 60), 0.25),  # a corner: every side can be seen
        ((20, 30, 40, 50), (10, 20, 50, 60), 0.25),  # its middle
        ((0, 0, 100, 100), (50, 60, 50, 60), 1.0),  # all
    ],
)
def test_uncovered_by_hand(hidden, left, share):
    boxes, hidden_share = uncovered(np.array([[10, 20, 50, 60]], np.float32), np.array(hidden, np.float32))
    assert hidden_share[0] == pytest.approx(share)
    if share < 1:
        assert boxes[0].tolist() == list(left)
    else:
        assert (boxes[0, 2:] - boxes[0, :2]).prod() == 0
    assert uncovered(np.zeros((0, 4), np.float32), np.array(hidden, np.float32))[0].shape == (0, 4)


def test_objects_that_are_covered_too_far_are_no_targets():
    below = picture([[40, 30, 80, 70]], [2])
    source = np.full((100, 120, 3), 90, np.uint8)
    seen = set()
    for seed in range(60):
        patch = cut_patch(source, np.array([10, 10, 50, 50], float), 7, 0.0)
        out = paste_all(below, [patch, patch], copy(max_cover=0.7), 0.5, np.random.default_rng(seed))
        covered = 1 - (out.image[30:70, 40:80] == 50).all(2).mean()
        kept = 2 in out.labels
        seen.add(kept)
        assert not (kept and covered > 0.75), (seed, covered)  # twice 50 % of what is left
        assert kept or covered > 0.45, (seed, covered)
    assert seen == {True, False}


def test_what_may_be_copied():
    config = copy(sides=(0.1, 0.4), margin=0.1)
    boxes = [[0, 0, 20, 20], [40, 40, 44, 44], [50, 50, 99, 99], [70, 0, 90, 20], [88, 18, 99, 30]]
    # Alone; too small; too large; touched by the next; and that by it.
    assert copyable(np.array(boxes, np.float32), np.zeros(5, int), (100, 100), config).tolist() == [0]
    assert copyable(np.array(boxes[:4], np.float32), np.zeros(4, int), (100, 100), config).tolist() == [0, 3]
    assert copyable(np.array(boxes[:4], np.float32), np.array([-2, 0, 0, 1]), (100, 100), config).tolist() == [3]
    assert copyable(np.zeros((0, 4), np.float32), np.zeros(0, int), (100, 100), config).tolist() == []


def test_sources_without_anything_to_give():
    rng = np.random.default_rng(0)
    negative = Negative(Path("x.png"), (0, 0, 5, 5), 0.5, "a")
    gone = Sources(InOrder([None] * 9), np.array([0, 1]), (negative,))
    assert gone.picture(rng) is None and gone.object_patches(copy(), rng) == []
    assert gone.negative_patch(negatives(), rng) is None
    assert Sources().picture(rng) is None and Sources().object_patches(copy(), rng) == []
    assert Sources(negatives=(negative,)).negative_patch(negatives(), rng) is None
    black = np.zeros((40, 40, 3), np.uint8)
    outside = Sources(InOrder([], black), negatives=(Negative(Path("x"), (50, 50, 60, 60), 0.5, "a"),))
    assert outside.negative_patch(negatives(), rng) is None
