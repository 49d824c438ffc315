"""What no assigner may use: priors beyond an image's own padding, and priors in ignore regions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from isodet.strict import ConfigError, build
from models.assigners import BACKGROUND, IGNORED, assign
from models.config.model import AnchorConfig, AssignConfig
from models.priors import feature_sizes
from tests.models.small import grid_for

KINDS = ("atss", "iou", "center", "topk")
SIDES = st.sampled_from([32, 64, 96, 128])
REGIONS = torch.tensor([[[0.0, 0.0, 60.0, 40.0], [20.0, 8.0, 52.0, 40.0], [70.0, 10.0, 120.0, 90.0]]])
FOUR = AnchorConfig(size=4.0)


def boxes_in(size_hw: tuple[int, int], seed: int, count: int) -> Tensor:
    random = np.random.default_rng(seed)
    start = random.uniform(0, 0.7, (1, count, 2)) * size_hw[::-1]
    end = start + random.uniform(4, 60, (1, count, 2))
    return torch.from_numpy(np.concatenate([start, end], axis=-1).clip(0, [*size_hw[::-1]] * 2)).float()


def rows(size_hw: tuple[int, int], own_hw: tuple[int, int]) -> list[int]:
    """The priors that an image of `own_hw` has alone, counted one by one in the grid of `size_hw`."""
    found, start = [], 0
    for level, (h, w) in enumerate(feature_sizes(size_hw, (3, 7)), start=3):
        own_h, own_w = (math.ceil(side / 2**level) for side in own_hw)
        found += [start + y * w + x for y in range(own_h) for x in range(own_w)]
        start += h * w
    return found


@given(SIDES, SIDES, st.integers(0, 2**20), st.integers(0, 5), st.sampled_from(KINDS))
def test_with_padding_absent_a_batch_says_of_an_image_what_the_image_alone_says(height, width, seed, count, kind):
    batch_hw, own_hw = (128, 128), (height, width)
    boxes = boxes_in(own_hw, seed, count)
    both, valid = boxes.expand(2, -1, -1), torch.ones(2, count, dtype=torch.bool)
    sizes = torch.tensor([own_hw, batch_hw])
    config = AssignConfig(kind=kind, padding="absent")
    matched = assign(config, grid_for(batch_hw, FOUR), both, valid, sizes_hw=sizes)
    mine = rows(batch_hw, own_hw)
    assert torch.equal(matched[0, mine], assign(config, grid_for(own_hw, FOUR), boxes, valid[:1])[0])
    beyond = torch.ones(matched.shape[1], dtype=torch.bool)
    beyond[mine] = False
    assert (matched[0, beyond] == IGNORED).all()
    everything = assign(AssignConfig(kind=kind), grid_for(batch_hw, FOUR), both, valid, sizes_hw=sizes)
    assert torch.equal(matched[1], everything[1])


@pytest.mark.parametrize("kind", KINDS)
def test_background_in_a_region_is_ignored_and_objects_keep_their_priors(kind):
    grid = grid_for((96, 128), FOUR)
    # Of three images the first has the regions 0 and 2 around and beside its object; the last has nothing else.
    boxes = REGIONS.expand(3, -1, -1)
    valid = torch.tensor([[False, True, False], [False, True, False], [False, False, False]])
    regions = torch.tensor([[True, False, True], [False, False, False], [True, False, False]])
    plain = assign(AssignConfig(kind=kind), grid, boxes, valid)
    ours = assign(AssignConfig(kind=kind), grid, boxes, valid, regions)
    theirs = assign(AssignConfig(kind=kind, ignore_over="objects"), grid, boxes, valid, regions)
    off = assign(AssignConfig(kind=kind, ignore_iof=None), grid, boxes, valid, regions)
    assert torch.equal(off, plain) and torch.equal(ours[1], plain[1]) and torch.equal(theirs[1], plain[1])
    inside = []
    for anchor in grid.boxes_xyxy.tolist():
        x1, y1, x2, y2 = anchor
        x, y, hit = (x1 + x2) / 2, (y1 + y2) / 2, False
        for a, b, c, d in REGIONS[0, [0, 2]].tolist():
            share = max(0, min(x2, c) - max(x1, a)) * max(0, min(y2, d) - max(y1, b)) / ((x2 - x1) * (y2 - y1))
            hit |= (a < x < c and b < y < d) if kind in ("center", "topk") else share > 0.5
        inside.append(hit)
    held = torch.tensor(inside)
    assert torch.equal(ours[0], torch.where(held & (plain[0] == BACKGROUND), IGNORED, plain[0]))
    assert (plain[0, held] == 1).any() and (theirs[0, held] == IGNORED).all() and not (theirs[0, ~held] == 0).any()
    assert (ours[2] >= 0).sum() == 0 and (ours[2] == IGNORED).any() and (ours[2] == BACKGROUND).any()


@pytest.mark.parametrize(
    "box", [[10.0, 10.0, 10.0, 10.0], [50.0, 50.0, 20.0, 20.0], [-900.0, -900.0, -800.0, -800.0], [0.0, 0.0, 0.0, 0.0]]
)
def test_regions_without_area_or_outside_hold_nothing(box):
    one = torch.ones(1, 1, dtype=torch.bool)
    for kind in KINDS:
        config = AssignConfig(kind=kind, ignore_iof=0.0)
        assert (assign(config, grid_for((64, 64), FOUR), torch.tensor([[box]]), ~one, one) == BACKGROUND).all()


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"ignore_iof": 1.0}, "ignore_iof: expected null, or a share from 0 up to 1"),
        ({"ignore_iof": None, "ignore_over": "objects"}, "ignore_over: objects is about ignore regions"),
        ({"padding": "none"}, "padding: expected one of"),
    ],
)
def test_what_does_not_fit_is_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        build(AssignConfig, keys, "assign")
