"""Tiles and their merge against sahi's, where sahi is installed: equal where the definitions are, and where they part.

Windows: sahi's `get_slice_bboxes` cuts the overlap down to whole pixels where `Tiles` rounds it. All else is the same.

Merge: `NMSPostprocess` and `GreedyNMMPostprocess` know no windows. What `Grid.merge` does otherwise, each shown below:

- sahi takes one overlap for all boxes, IoU or IoS. isodet takes IoS where a box is cut, else IoU. So sahi's default,
  IoS, loses a small object before a large one of its class, and its IoU keeps the parts of a cut object.
- sahi ranks by score, isodet a cut box by half of it. So sahi's NMS keeps a part that is a little surer than the whole.
- Above an IoU of 0.5, isodet takes two boxes that are each other's nearest for one object, whatever the threshold.
- sahi's GreedyNMM gives the hull of what it takes together, isodet the box that came first.
- sahi suppresses from the threshold on (>=), isodet above it (>), as the NMS of the graph does.
- sahi compares boxes of one window again, and breaks ties by coordinates instead of by window.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import Detections, Tiles
from runtime.tiles import Grid

pytest.importorskip("sahi", reason="sahi is not installed")
from sahi.postprocess.combine import GreedyNMMPostprocess, NMSPostprocess
from sahi.prediction import ObjectPrediction
from sahi.slicing import get_slice_bboxes

CLASSES = ("ant", "bee", "cat")
TWO = Tiles(overlap=0.25, whole=False).grid((64, 112), (64, 64))  # 0..64 and 48..112
THREE = Tiles(overlap=0.25).grid((64, 112), (64, 64))  # and the whole frame

Rows = set[tuple[float, ...]]
"""Detections as (x1, y1, x2, y2, score, label), in any order."""


# From here on: where tiles lie
@given(
    frame_hw=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    tile_hw=st.tuples(st.integers(32, 1300), st.integers(32, 1300)),
    overlap=st.floats(0, 0.9) | st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.29, 0.5, 0.9]),
)
def test_tiles_are_those_of_sahi_but_for_the_rounding_of_the_overlap(
    frame_hw: tuple[int, int], tile_hw: tuple[int, int], overlap: float
) -> None:
    windows = [list(window) for window in Tiles(overlap=overlap, whole=False).grid(frame_hw, tile_hw).windows]
    # sahi cuts share * side down: half a pixel more than the rounded overlap, and both overlap by the same pixels
    rounded = [(round(overlap * side) + 0.5) / side for side in tile_hw]
    assert windows == get_slice_bboxes(*frame_hw, *tile_hw, False, *rounded)
    if all(int(overlap * side) == round(overlap * side) for side in tile_hw):
        assert windows == get_slice_bboxes(*frame_hw, *tile_hw, False, overlap, overlap)


def test_sahi_cuts_the_overlap_down_and_tiles_round_it() -> None:
    """0.29 * 100 is 28.999999999999996 in floating point, and 0.35 * 50 is 17.5."""
    for side, overlap, cut_down, rounded in ((100, 0.29, 28, 29), (50, 0.35, 17, 18)):
        ours = Tiles(overlap=overlap, whole=False).grid((side, 1000), (side, side)).windows
        theirs = get_slice_bboxes(side, 1000, side, side, False, overlap, overlap)
        assert ours[1].x1 == side - rounded and theirs[1][0] == side - cut_down


# From here on: the merge
def sahis(kind: type, parts: list[Detections], grid: Grid, threshold: float, metric: str) -> Rows:
    """What a postprocess of sahi makes of the detections of all windows."""
    predictions = [
        ObjectPrediction(
            bbox=[float(v) for v in box + np.float32([w.x1, w.y1] * 2)], score=float(score), category_id=int(label),
            category_name=CLASSES[label],
        )
        for w, part in zip(grid.windows, parts, strict=True)
        for box, score, label in zip(part.boxes_xyxy, part.scores, part.labels, strict=True)
    ]  # fmt: skip
    kept = kind(match_threshold=threshold, match_metric=metric, class_agnostic=False)(predictions)
    kept = kept if isinstance(kept, list) else [kept]
    return {(*map(float, one.bbox.to_xyxy()), float(one.score.value), one.category.id) for one in kept}


def ours(parts: list[Detections], grid: Grid, threshold: float) -> Rows:
    merged = grid.merge(parts, threshold)
    rows = np.concatenate([merged.boxes_xyxy, merged.scores[:, None], merged.labels[:, None]], axis=1)
    return {tuple(row) for row in rows.astype(np.float64).tolist()}


def overlap_of(a: Any, b: Any, metric: str) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(np.maximum(sides, 0)))
    areas = float(np.prod(a[2:] - a[:2])), float(np.prod(b[2:] - b[:2]))
    return shared / (min(areas) if metric == "IOS" else sum(areas) - shared)


def scene(grid: Grid, rng: np.random.Generator, threshold: float, metric: str, place: Any) -> list[Detections]:
    """Detections of each window as `place` puts them, after the NMS that a graph would have done, no score twice."""
    parts = []
    for w in grid.windows:
        kept: list[tuple[Any, int]] = []
        for _ in range(12):
            box, label = place(w.x2 - w.x1, w.y2 - w.y1), int(rng.integers(0, 2))
            if all(label != other or overlap_of(box, b, metric) < threshold for b, other in kept):
                kept.append((box, label))
        scores = np.sort(rng.permutation(999)[: len(kept)] + rng.random())[::-1] / 1000
        boxes = np.array([box for box, _ in kept], np.float32)
        labels = np.array([label for _, label in kept], np.int32)
        parts.append(Detections(boxes, scores.astype(np.float32), labels, CLASSES))
    return parts


@pytest.mark.parametrize("threshold", [0.2, 0.35, 0.5])
def test_boxes_that_no_border_cuts_are_merged_as_by_sahis_nms_with_iou(threshold: float) -> None:
    rng, suppressed = np.random.default_rng(0), 0

    def inside(width: int, height: int) -> Any:
        low = 2 + rng.random(2) * (width - 34, height - 34)
        return np.concatenate([low, low + 10 + 20 * rng.random(2)])

    for _ in range(60):
        grid = Tiles(overlap=0.7).grid((90, 110), (64, 64))
        parts = scene(grid, rng, threshold, "IOU", inside)
        kept = ours(parts, grid, threshold)
        assert kept == sahis(NMSPostprocess, parts, grid, threshold, "IOU")
        suppressed += sum(map(len, parts)) - len(kept)
    assert suppressed > 300


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.65])
def test_boxes_that_borders_cut_are_merged_as_by_sahis_nms_with_ios(threshold: float) -> None:
    """All are cut, so that all count half and their order is that of their scores."""
    rng, suppressed = np.random.default_rng(1), 0

    def at_an_inner_border(width: int, height: int) -> Any:
        return np.array([0, (y := rng.random() * (height - 20)), 3 + 60 * rng.random(), y + 4 + 16 * rng.random()])

    for _ in range(60):
        grid = Tiles(overlap=0.7, whole=False).grid((64, 150), (64, 64))
        parts = scene(grid, rng, threshold, "IOS", at_an_inner_border)
        parts[0] = parts[0][:0]  # its left border is the frame's, which cuts nothing
        kept = ours(parts, grid, threshold)
        assert kept == sahis(NMSPostprocess, parts, grid, threshold, "IOS")
        suppressed += sum(map(len, parts)) - len(kept)
    assert suppressed > 100


def test_parts_of_an_object_go_into_the_whole_as_by_sahis_default() -> None:
    """GreedyNMM with IoS, on objects apart from each other, the whole frame surest: the hull is the whole's box."""
    rng, cut = np.random.default_rng(2), 0
    for _ in range(100):
        grid = Tiles(overlap=0.3).grid((150, 200), (64, 64))
        low = np.array([[x, y] for x in (5, 70, 135) for y in (5, 75)]) + 10 * rng.random((6, 2))
        objects = np.concatenate([low, low + 6 + 46 * rng.random((6, 2))], axis=1).astype(np.float32)
        parts = []
        for w in grid.windows:
            clipped = np.clip(objects - np.float32([w.x1, w.y1] * 2), 0, np.float32([w.x2 - w.x1, w.y2 - w.y1] * 2))
            seen = (clipped[:, 2:] - clipped[:, :2]).min(axis=1) > 1
            scores = (rng.random(6) * 0.3 + (0.6 if w == grid.windows[-1] else 0.2)).astype(np.float32)
            order = np.argsort(-scores)
            order = order[seen[order]]
            parts.append(Detections(clipped[order], scores[order], (order % 2).astype(np.int32), CLASSES))
            smaller = clipped[:, 2:] - clipped[:, :2] < objects[:, 2:] - objects[:, :2] - 1
            cut += int((seen & smaller.any(axis=1)).sum())
        kept = ours(parts, grid, 0.5)
        assert len(kept) == 6
        theirs = sahis(GreedyNMMPostprocess, parts, grid, 0.5, "IOS")
        assert np.array(sorted(kept)) == pytest.approx(np.array(sorted(theirs)), abs=1e-3)
        assert kept == sahis(NMSPostprocess, parts, grid, 0.5, "IOS")
    assert cut > 300


def of(*rows: tuple[list[float], float]) -> Detections:
    boxes = np.array([box for box, _ in rows], np.float32).reshape(-1, 4)
    return Detections(boxes, np.array([s for _, s in rows], np.float32), np.zeros(len(rows), np.int32), CLASSES)


def boxes_of(rows: Rows) -> list[list[float]]:
    return sorted(list(row[:4]) for row in rows)


def test_a_small_object_before_a_large_one_is_lost_by_sahis_ios() -> None:
    parts = [of(([2, 2, 60, 60], 0.9)), of(([2, 20, 10, 30], 0.75))]  # the tile's, and one of the tile beside it
    both = [[2, 2, 60, 60], [50, 20, 58, 30]]
    assert boxes_of(ours(parts, TWO, 0.5)) == both == boxes_of(sahis(NMSPostprocess, parts, TWO, 0.5, "IOU"))
    assert boxes_of(sahis(GreedyNMMPostprocess, parts, TWO, 0.5, "IOS")) == both[:1]


def test_parts_of_a_cut_object_stay_by_sahis_iou() -> None:
    parts = [of(([40, 10, 64, 50], 0.5)), of(), of(([40, 10, 100, 50], 0.75))]
    assert boxes_of(ours(parts, THREE, 0.5)) == [[40, 10, 100, 50]]
    assert len(sahis(NMSPostprocess, parts, THREE, 0.5, "IOU")) == 2


def test_a_part_that_is_a_little_surer_comes_first_in_sahi() -> None:
    parts = [of(([20, 10, 64, 50], 0.875)), of(), of(([20, 10, 98, 50], 0.75))]
    assert ours(parts, THREE, 0.5) == {(20, 10, 98, 50, 0.75, 0)}
    assert sahis(NMSPostprocess, parts, THREE, 0.5, "IOS") == {(20, 10, 64, 50, 0.875, 0)}
    assert sahis(GreedyNMMPostprocess, parts, THREE, 0.5, "IOS") == {(20, 10, 98, 50, 0.875, 0)}  # the hull, the score


def test_halves_that_nobody_saw_whole_are_one_hull_in_sahi() -> None:
    parts = [of(([44, 10, 64, 50], 0.75)), of(([0, 10, 18, 50], 0.5))]  # 44..64 and 48..66 of the frame
    assert boxes_of(ours(parts, TWO, 0.5)) == [[44, 10, 64, 50]]
    assert boxes_of(sahis(GreedyNMMPostprocess, parts, TWO, 0.5, "IOS")) == [[44, 10, 66, 50]]


def test_the_nearest_box_of_another_window_stays_in_sahi() -> None:
    parts = [of(([10, 10, 40, 40], 0.75)), of(), of(([19, 10, 49, 40], 0.5))]  # IoU 0.54
    assert boxes_of(ours(parts, THREE, 0.6)) == [[10, 10, 40, 40]]
    assert len(sahis(NMSPostprocess, parts, THREE, 0.6, "IOU")) == 2


def test_sahi_suppresses_at_the_threshold_and_within_a_window() -> None:
    halves = [of(([50, 4, 60, 14], 0.75)), of(([2, 4, 12, 9], 0.5))]  # IoU exactly 0.5
    assert len(ours(halves, TWO, 0.5)) == 2 and len(sahis(NMSPostprocess, halves, TWO, 0.5, "IOU")) == 1
    pair = [of(([4, 4, 20, 20], 0.75), ([4, 4, 20, 19], 0.5)), of()]
    assert len(ours(pair, TWO, 0.5)) == 2 and len(sahis(NMSPostprocess, pair, TWO, 0.5, "IOU")) == 1
