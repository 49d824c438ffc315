"""Every assigner against a plain loop written from its paper, on boxes that nobody chose.

The loops count in float64 and say which priors hang on a rounding (`sensitive`): those are not compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.assigners import BACKGROUND, IGNORED, assign
from models.assigners.atss import assign_atss
from models.assigners.candidates import nearest
from models.assigners.center import assign_center
from models.assigners.iou import assign_iou
from models.assigners.topk import assign_topk
from models.config.model import AnchorConfig, AssignConfig
from models.priors import Priors
from tests.models.small import grid_for

ONE = AnchorConfig(size=8.0)
NINE = AnchorConfig(size=4.0, scales_per_octave=3, ratios=(0.5, 1.0, 2.0))
NEAR = 1e-4  # pixels, and for overlaps a tenth of it


def iou(a: list[float], b: list[float]) -> float:
    overlap = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return overlap / max((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap, 1e-6)


def margin_inside(point: tuple[float, float], box: list[float]) -> float:
    return min(point[0] - box[0], point[1] - box[1], box[2] - point[0], box[3] - point[1])


def loop_atss(
    grid: Priors, boxes: list[list[float]], topk: int, fit: Callable[[int, int], float] | None = None
) -> tuple[list[int], set[int]]:
    """ATSS paper, algorithm 1, one object, one level, one candidate at a time.

    fit: how good prior i is for object g, by `fit(g, i)`; None: the overlap of its anchor.
    """
    anchors = grid.boxes_xyxy.double().tolist()
    points = [((a[0] + a[2]) / 2, (a[1] + a[3]) / 2) for a in anchors]
    matched, fit_of, sensitive = [BACKGROUND] * len(anchors), [-1.0] * len(anchors), set()
    for g, box in enumerate(boxes):
        center = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        candidates, undecided, start = [], False, 0
        for size in grid.level_sizes:
            ranked = sorted(range(start, start + size), key=lambda i: math.dist(points[i], center))
            if size > topk:
                gap = math.dist(points[ranked[topk]], center) - math.dist(points[ranked[topk - 1]], center)
                undecided |= gap < NEAR
            candidates += ranked[:topk]
            start += size
        fits = [iou(anchors[i], box) if fit is None else fit(g, i) for i in candidates]
        mean = sum(fits) / len(fits)
        threshold = mean + math.sqrt(sum((f - mean) ** 2 for f in fits) / (len(fits) - 1))
        if undecided:  # which of two equally near priors is a candidate changes the threshold, and so everything
            sensitive.update(range(len(anchors)))
        for i, value in zip(candidates, fits, strict=True):
            inside = margin_inside(points[i], box)
            # Where nothing overlaps all fits are 0, and so is the threshold: exactly, with no rounding between them.
            if (abs(value - threshold) < NEAR / 10 and threshold > 0) or abs(inside - 0.01) < NEAR:
                sensitive.add(i)
            if value >= threshold and inside > 0.01:
                if abs(value - fit_of[i]) < NEAR / 10:
                    sensitive.add(i)
                if value > fit_of[i]:
                    matched[i], fit_of[i] = g, value
    return matched, sensitive


def loop_topk(grid: Priors, boxes: list[list[float]], topk: int) -> tuple[list[int], set[int]]:
    """On every level the `topk` points nearest to an object that lie in it; disputed ones to the larger overlap."""
    anchors = grid.boxes_xyxy.double().tolist()
    points = [((a[0] + a[2]) / 2, (a[1] + a[3]) / 2) for a in anchors]
    matched, overlap_of, sensitive = [BACKGROUND] * len(anchors), [-1.0] * len(anchors), set()
    for g, box in enumerate(boxes):
        center, start = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), 0
        for size in grid.level_sizes:
            distance = {i: math.dist(points[i], center) for i in range(start, start + size)}
            ranked = sorted(distance, key=distance.__getitem__)
            start += size
            if size > topk:  # those as far as the last one taken are taken or not by a rounding
                sensitive |= {i for i in ranked if abs(distance[i] - distance[ranked[topk - 1]]) < NEAR} - {
                    i for i in ranked[:topk] if distance[ranked[topk]] - distance[i] >= NEAR
                }
            for i in ranked[:topk]:
                margin, overlap = margin_inside(points[i], box), iou(anchors[i], box)
                if abs(margin - 0.01) < NEAR or (matched[i] >= 0 and abs(overlap - overlap_of[i]) < NEAR / 10):
                    sensitive.add(i)
                if margin > 0.01 and overlap > overlap_of[i]:
                    matched[i], overlap_of[i] = g, overlap
    return matched, sensitive


def loop_iou(grid: Priors, boxes: list[list[float]], pos_iou: float, neg_iou: float) -> tuple[list[int], set[int]]:
    """RetinaNet, section 4, then rule (i) of Faster R-CNN, section 3.1.2."""
    anchors = grid.boxes_xyxy.double().tolist()
    table = [[iou(anchor, box) for box in boxes] for anchor in anchors]
    matched, sensitive = [], set()
    for i, overlaps in enumerate(table):
        best = max(overlaps, default=0.0)
        matched.append(overlaps.index(best) if best >= pos_iou else BACKGROUND if best < neg_iou else IGNORED)
        if not boxes:
            matched[-1] = BACKGROUND
        near_tie = sum(best - o < NEAR / 10 for o in overlaps) > 1 and best > 0
        if near_tie or min(abs(best - pos_iou), abs(best - neg_iou)) < NEAR / 10:
            sensitive.add(i)
    for g in range(len(boxes)):
        best = max(overlaps[g] for overlaps in table)
        for i, overlaps in enumerate(table):
            if best > 0 and overlaps[g] == best:
                matched[i] = g
            if best > 0 and best - overlaps[g] < NEAR / 10 and sum(best - o[g] < NEAR / 10 for o in table) > 1:
                sensitive.add(i)  # anchors that tie for an object's best: float equality decides
    return matched, sensitive


def loop_center(
    grid: Priors, boxes: list[list[float]], radius: float, range_factor: float
) -> tuple[list[int], set[int]]:
    """FCOS, sections 3.1 and 3.2, with center sampling."""
    points, strides = grid.points.double().tolist(), grid.strides.tolist()
    matched, sensitive = [], set()
    last = len(points) - grid.level_sizes[-1]
    for i, (point, stride) in enumerate(zip(points, strides, strict=True)):
        low = 0.0 if i < grid.level_sizes[0] else range_factor * stride / 2
        high = math.inf if i >= last else range_factor * stride
        best, best_area = BACKGROUND, math.inf
        for g, box in enumerate(boxes):
            cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            region = box
            if radius:
                reach = radius * stride
                middle = [cx - reach, cy - reach, cx + reach, cy + reach]
                region = [*map(max, box[:2], middle[:2]), *map(min, box[2:], middle[2:])]
            inside = margin_inside(point, region)
            farthest = max(point[0] - box[0], point[1] - box[1], box[2] - point[0], box[3] - point[1])
            if min(abs(inside), abs(farthest - low), abs(farthest - high)) < NEAR:
                sensitive.add(i)
            area = (box[2] - box[0]) * (box[3] - box[1])
            if inside > 0 and low <= farthest <= high:
                if best != BACKGROUND and abs(area - best_area) < 1e-4 * area:
                    sensitive.add(i)
                if area < best_area:
                    best, best_area = g, area
        matched.append(best)
    return matched, sensitive


@st.composite
def batches(draw: Callable) -> tuple[tuple[int, int], list[list[list[float]]]]:
    """An input size and the boxes of 1-3 images, 0-6 each: tiny, huge, thin, overlapping, over the border."""
    height, width = draw(st.sampled_from([64, 96, 160])), draw(st.sampled_from([64, 128]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    images = []
    for count in draw(st.lists(st.integers(0, 6), min_size=1, max_size=3)):
        centers = rng.uniform(0, [width, height], (count, 2))
        sides = np.exp(rng.uniform(np.log(2), np.log(200), (count, 2)))
        boxes = np.concatenate([centers - sides / 2, centers + sides / 2], axis=1).astype(np.float32)
        if count > 1 and draw(st.booleans()):
            boxes[1] = boxes[0] + rng.uniform(-3, 3, 4).astype(np.float32) * (sides[0].min() > 16)
        images.append(boxes.tolist())
    return (height, width), images


def padded(images: list[list[list[float]]]) -> tuple[Tensor, Tensor]:
    G = max(len(boxes) for boxes in images)
    boxes, valid = torch.zeros(len(images), G, 4), torch.zeros(len(images), G, dtype=torch.bool)
    for b, rows in enumerate(images):
        if rows:
            boxes[b, : len(rows)] = torch.tensor(rows)
            valid[b, : len(rows)] = True
    return boxes, valid


def compare(matched: Tensor, loops: list[tuple[list[int], set[int]]]) -> None:
    for ours, (theirs, sensitive) in zip(matched.tolist(), loops, strict=True):
        different = [i for i in range(len(theirs)) if ours[i] != theirs[i] and i not in sensitive]
        assert not different, [(i, ours[i], theirs[i]) for i in different[:5]]


@pytest.mark.parametrize("assigner, loop", [(assign_atss, loop_atss), (assign_topk, loop_topk)])
@given(batch=batches(), topk=st.sampled_from([1, 4, 9]))
def test_atss_and_topk_are_what_their_papers_say(assigner, loop, batch, topk):
    size_hw, images = batch
    grid = grid_for(size_hw, ONE)
    compare(assigner(grid, *padded(images), topk=topk), [loop(grid, boxes, topk) for boxes in images])


@given(batches(), st.sampled_from([1, 4, 9]), st.sampled_from([assign_atss, assign_topk]))
def test_looking_at_a_window_of_the_grid_finds_what_looking_everywhere_finds(batch, topk, assigner):
    """Boxes at random places have no ties, so both ways must agree exactly."""
    size_hw, images = batch
    grid = grid_for(size_hw, ONE)
    assert [h * w * anchors for h, w, anchors in grid.level_shapes] == list(grid.level_sizes)
    boxes = padded(images)
    assert torch.equal(assigner(grid, *boxes, topk), assigner(grid._replace(level_shapes=()), *boxes, topk))


@given(batches(), st.sampled_from([1, 4, 9]))
def test_with_several_anchors_in_a_cell_the_window_holds_the_nearest_too(batch, topk):
    """Which anchor of a cell is taken is open, so distances are compared."""
    size_hw, images = batch
    grid, (boxes, _) = grid_for(size_hw, NINE), padded(images)
    centers = (boxes[..., None, :2] + boxes[..., None, 2:]) / 2
    found = [
        (grid.points[nearest(each, boxes, topk)[0]] - centers).norm(dim=-1).sort(dim=-1).values
        for each in (grid, grid._replace(level_shapes=()))
    ]
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-5)


@given(batches(), st.sampled_from([(0.5, 0.4), (0.5, 0.5), (0.7, 0.3)]))
def test_iou_assignment_is_the_papers(batch, thresholds):
    size_hw, images = batch
    grid = grid_for(size_hw, NINE)
    compare(assign_iou(grid, *padded(images), *thresholds), [loop_iou(grid, boxes, *thresholds) for boxes in images])


@given(batches(), st.sampled_from([0.0, 1.5, 2.5]), st.sampled_from([4.0, 8.0]))
def test_center_assignment_is_the_papers(batch, radius, range_factor):
    size_hw, images = batch
    grid = grid_for(size_hw, ONE)
    loops = [loop_center(grid, boxes, radius, range_factor) for boxes in images]
    compare(assign_center(grid, *padded(images), radius, range_factor), loops)


ALL = [("atss", ONE), ("iou", NINE), ("center", ONE), ("atss", NINE), ("topk", ONE)]


@pytest.mark.parametrize("kind, anchors", ALL)
@pytest.mark.parametrize("G", [0, 3])
def test_without_objects_everything_is_background(kind, anchors, G):
    grid = grid_for((64, 96), anchors)
    boxes = torch.tensor([8.0, 8.0, 60.0, 60.0]).expand(2, G, 4)  # would match, were they valid
    matched = assign(AssignConfig(kind=kind), grid, boxes, torch.zeros(2, G, dtype=torch.bool))
    assert matched.shape == (2, len(grid.boxes_xyxy)) and matched.dtype == torch.int64
    assert (matched == BACKGROUND).all()


@pytest.mark.parametrize("kind, anchors", ALL)
def test_an_object_without_area_takes_nothing_and_disturbs_nobody(kind, anchors):
    grid = grid_for((64, 96), anchors)
    config = AssignConfig(kind=kind)
    good = [[10.0, 12.0, 50.0, 47.0], [30.0, 5.0, 90.0, 60.0]]
    alone = assign(config, grid, *padded([good]))
    among = assign(config, grid, *padded([[*good, [20.0, 20.0, 20.0, 40.0], [33.0, 33.0, 33.0, 33.0]]]))
    assert (alone >= 0).any()
    assert torch.equal(alone, among)


@pytest.mark.parametrize("kind, anchors", ALL)
def test_each_image_is_assigned_as_if_it_were_alone(kind, anchors):
    grid = grid_for((96, 128), anchors)
    config = AssignConfig(kind=kind)
    rng = np.random.default_rng(3)
    images = []
    for count in (5, 0, 1, 9):
        corner, side = rng.uniform(0, 90, (count, 2)), rng.uniform(4, 80, (count, 2))
        images.append(np.concatenate([corner, corner + side], axis=1).tolist())
    together = assign(config, grid, *padded(images))
    for row, boxes in zip(together, images, strict=True):
        assert torch.equal(row, assign(config, grid, *padded([boxes]))[0])


def test_a_level_with_fewer_priors_than_topk_gives_all_it_has():
    grid = grid_for((64, 64), ONE)
    assert min(grid.level_sizes) == 1
    matched = assign_atss(grid, *padded([[[2.0, 2.0, 62.0, 62.0]]]), topk=9)
    assert (matched >= 0).any()


def test_the_inputs_are_left_alone():
    grid = grid_for((64, 64), ONE)
    strides = grid.strides.clone()
    for kind, _ in ALL:
        boxes, valid = padded([[[2.0, 2.0, 30.0, 30.0]], []])
        before = boxes.clone(), valid.clone()
        assign(AssignConfig(kind=kind), grid, boxes, valid)
        assert torch.equal(boxes, before[0]) and torch.equal(valid, before[1]) and torch.equal(grid.strides, strides)
