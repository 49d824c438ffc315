"""Matching against pycocotools' own record of who found whom, and curves against its precision."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from isodet.errors import ArgumentError
from runtime.datasets.annotations import EVERY_CLASS, CocoDataset
from runtime.detections import Detections
from runtime.evaluation.coco_eval import coco_evaluator
from runtime.evaluation.curves import Curve, curves, recommended
from runtime.evaluation.matching import IGNORED, INVENTED, greedy, match, pairwise_iou
from tests.at_fault import raises

Scene = Callable[..., tuple[CocoDataset, dict[int, Detections]]]


@pytest.fixture(autouse=True)
def only_pycocotools(monkeypatch: pytest.MonkeyPatch) -> None:
    """faster-coco-eval keeps no record of single images."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    monkeypatch.setattr("runtime.evaluation.coco_eval.coco_engine", lambda: (COCO, COCOeval))


@pytest.mark.parametrize(("seed", "crowds"), [(0, 0.0), (1, 0.3), (2, 0.6)])
def test_matches_are_those_of_pycocotools(scene: Scene, seed: int, crowds: float) -> None:
    dataset, found = scene(seed, images=20, crowds=crowds)
    judge = coco_evaluator(found, dataset)
    theirs: dict[int, tuple[float, bool]] = {}  # detection's annotation id: the object's, ignored
    for entry in judge.evalImgs:
        if entry is not None and entry["aRng"] == judge.params.areaRng[0]:
            for d, object_id, ignored in zip(entry["dtIds"], entry["dtMatches"][0], entry["dtIgnore"][0], strict=True):
                theirs[d] = (object_id, bool(ignored))
    # Annotations are numbered from 1 in the order of records; a region of every class is one annotation for each.
    number, first, meant = 0, {}, [(0, 0)]
    for record in dataset.records:
        first[record.id] = number + 1
        number += len(found[record.id])
        for g, label in enumerate(record.labels):
            meant += [(record.id, g)] * (4 if label == EVERY_CLASS else 1)
    seen = 0
    for m in match(found, dataset):
        for d, mine in enumerate(m.object_of.tolist()):
            object_id, ignored = theirs[first[m.record.id] + d]
            expected = IGNORED if ignored else meant[int(object_id)][1] if object_id else INVENTED
            assert mine == expected and (mine < 0 or meant[int(object_id)][0] == m.record.id)
            seen += mine == (IGNORED if crowds else INVENTED)
    assert seen > 5 and [m.record.id for m in match(found, dataset)] == list(range(1, 21))


@pytest.mark.parametrize("tie", [False, True])
def test_ap50_is_that_of_pycocotools(scene: Scene, tie: bool) -> None:
    dataset, found = scene(4, images=30, crowds=0.2, tie=tie)
    precision = coco_evaluator(found, dataset).eval["precision"][0, :, :, 0, -1]
    ours = {curve.name: curve for curve in curves(match(found, dataset), dataset.class_names)}
    for column, name in enumerate(dataset.class_names[:3]):
        np.testing.assert_allclose(ours[name].sampled(), precision[:, column], atol=1e-12)
    assert ours["cat"].ap50 == 0 and math.isnan(ours["dog"].ap50) and 0.1 < ours["ant"].ap50 < 0.9


def test_detections_beyond_the_hundredth_are_matched_like_any(scene: Scene) -> None:
    dataset, _ = scene(objects=False, images=1)
    boxes = np.tile(np.array([[0, 0, 9, 9]], np.float32), (130, 1))
    labels = np.where(np.arange(130) < 120, 0, 1).astype(np.int32)
    found = Detections(boxes, np.linspace(1, 0, 130, dtype=np.float32), labels, dataset.class_names)
    (m,) = match({1: found}, dataset)
    assert (m.object_of == INVENTED).all()


def test_of_equal_overlaps_the_last_object_is_taken() -> None:
    assert greedy(np.array([[0.7, 0.5, 0.7], [0.7, 0.5, 0.7]]), np.zeros(3, np.bool_)).tolist() == [2, 0]


def test_nothing_with_nothing(scene: Scene) -> None:
    assert greedy(np.zeros((0, 3)), np.zeros(3, np.bool_)).shape == (0,)
    assert greedy(np.zeros((2, 0)), np.zeros(0, np.bool_)).tolist() == [INVENTED, INVENTED]
    assert pairwise_iou(np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32)).tolist() == [[0]]
    for keywords in ({"found": False}, {"objects": False}, {"found": False, "objects": False}):
        dataset, found = scene(**keywords)
        limits, measured = recommended(curves(match(found, dataset), dataset.class_names), 0.4)
        assert measured == {} and limits.tolist() == [0.4] * 4
    assert curves((), ("ant",))[0].scores.shape == (0,)


def plain_point(curve: Curve, threshold: float) -> tuple[float, float, float]:
    """Precision, recall, F1 by counting."""
    kept = [hit for score, hit in zip(curve.scores, curve.hits, strict=True) if score >= np.float32(threshold)]
    tp = sum(map(bool, kept))
    return (tp / len(kept) if kept else math.nan, tp / curve.objects, 2 * tp / (len(kept) + curve.objects))


@pytest.mark.parametrize("tie", [False, True])
def test_the_recommended_threshold_is_the_best_of_all(scene: Scene, tie: bool) -> None:
    for seed in range(6):
        dataset, found = scene(seed, images=15, tie=tie)
        for curve in curves(match(found, dataset), dataset.class_names)[:2]:
            choice = curve.recommend()
            assert choice is not None and choice.reached
            every = [plain_point(curve, s) for s in curve.scores]
            chosen = plain_point(curve, choice.threshold)
            assert chosen[2] == pytest.approx(max(p[2] for p in every))
            at = curve.at(choice.threshold)
            assert (at.precision, at.recall, at.f1) == pytest.approx(chosen)
            for wanted in (0.3, 0.6):
                good = [p for p in every if p[0] >= wanted]
                choice = curve.recommend(wanted)
                assert choice is not None and choice.reached == bool(good)
                chosen = plain_point(curve, choice.threshold)
                expected = max(p[1] for p in good) if good else max(p[0] for p in every)
                assert chosen[1 if good else 0] == pytest.approx(expected)


def test_a_precision_out_of_reach_and_one_that_is_none() -> None:
    curve = Curve("ant", 4, np.array([0.9, 0.8004, 0.7]), np.array([False, True, True]))
    choice = curve.recommend(0.9)
    assert choice is not None and not choice.reached and choice.threshold == 0.7
    choice = curve.recommend(0.5)
    assert choice is not None and choice.reached and curve.at(choice.threshold).recall == 0.5
    for scores in ([0.8004, 0.8001], [0.7003, 0.7]):  # three decimals would let the second in
        close = Curve("ant", 1, np.array(scores, np.float32).astype(float), np.array([True, False]))
        choice = close.recommend()
        assert choice is not None and close.at(choice.threshold).precision == 1
    missing = Curve("bee", 0, np.array([0.9]), np.array([False]))
    assert missing.recommend() is None and math.isnan(missing.at(0.5).recall) and missing.at(0.5).precision == 0
    for bad in (0.0, 1.1, math.nan):
        with raises(ArgumentError, key="precision"):
            recommended([curve], 0.3, bad)
