"""Matching, curves, confusion and VOC's protocol: against pycocotools' own record, and against plain loops."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from isodet.errors import ArgumentError
from runtime.datasets.annotations import EVERY_CLASS, CocoDataset
from runtime.detections import Detections
from runtime.evaluation.coco_eval import coco_evaluator
from runtime.evaluation.confusion import confusion
from runtime.evaluation.curves import Curve, curves, recommended
from runtime.evaluation.details import measure
from runtime.evaluation.matching import IGNORED, INVENTED, greedy, match, pairwise_iou
from runtime.evaluation.voc import ap11, area, voc_ap
from runtime.evaluation.worst import worst_images
from tests.at_fault import raises
from tests.runtime.conftest import random_scene
from tests.runtime.test_measurement import judged


@pytest.fixture(autouse=True)
def only_pycocotools(monkeypatch: pytest.MonkeyPatch) -> None:
    """faster-coco-eval keeps no record of single images."""
    monkeypatch.setattr("runtime.evaluation.coco_eval.coco_engine", lambda: (COCO, COCOeval))


@pytest.mark.parametrize(("seed", "crowds"), [(0, 0.0), (1, 0.3), (2, 0.6)])
def test_matches_are_those_of_pycocotools(seed: int, crowds: float) -> None:
    dataset, found = random_scene(seed, images=20, crowds=crowds)
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
def test_ap50_is_that_of_pycocotools(tie: bool) -> None:
    dataset, found = random_scene(4, images=30, crowds=0.2, tie=tie)
    precision = coco_evaluator(found, dataset).eval["precision"][0, :, :, 0, -1]
    ours = {curve.name: curve for curve in curves(match(found, dataset), dataset.class_names)}
    for column, name in enumerate(dataset.class_names[:3]):
        np.testing.assert_allclose(ours[name].sampled(), precision[:, column], atol=1e-12)
    assert ours["cat"].ap50 == 0 and math.isnan(ours["dog"].ap50) and 0.1 < ours["ant"].ap50 < 0.9


def test_detections_beyond_the_hundredth_are_matched_like_any() -> None:
    dataset, _ = random_scene(objects=False, images=1)
    boxes = np.tile(np.array([[0, 0, 9, 9]], np.float32), (130, 1))
    labels = np.where(np.arange(130) < 120, 0, 1).astype(np.int32)
    found = Detections(boxes, np.linspace(1, 0, 130, dtype=np.float32), labels, dataset.class_names)
    (m,) = match({1: found}, dataset)
    assert (m.object_of == INVENTED).all()


def test_of_equal_overlaps_the_last_object_is_taken() -> None:
    assert greedy(np.array([[0.7, 0.5, 0.7], [0.7, 0.5, 0.7]]), np.zeros(3, np.bool_)).tolist() == [2, 0]


def test_nothing_with_nothing() -> None:
    assert greedy(np.zeros((0, 3)), np.zeros(3, np.bool_)).shape == (0,)
    assert greedy(np.zeros((2, 0)), np.zeros(0, np.bool_)).tolist() == [INVENTED, INVENTED]
    assert pairwise_iou(np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32)).tolist() == [[0]]
    for keywords in ({"found": False}, {"objects": False}, {"found": False, "objects": False}):
        dataset, found = random_scene(**keywords)
        limits, measured = recommended(curves(match(found, dataset), dataset.class_names), 0.4)
        assert measured == {} and limits.tolist() == [0.4] * 4
    assert curves((), ("ant",))[0].scores.shape == (0,)


def plain_point(curve: Curve, threshold: float) -> tuple[float, float, float]:
    """Precision, recall, F1 by counting."""
    kept = [hit for score, hit in zip(curve.scores, curve.hits, strict=True) if score >= np.float32(threshold)]
    tp = sum(map(bool, kept))
    return (tp / len(kept) if kept else math.nan, tp / curve.objects, 2 * tp / (len(kept) + curve.objects))


@pytest.mark.parametrize("tie", [False, True])
def test_the_recommended_threshold_is_the_best_of_all(tie: bool) -> None:
    for seed in range(6):
        dataset, found = random_scene(seed, images=15, tie=tie)
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


# From here on: the confusion matrix
def plain_iou(a: list[float], b: list[float]) -> tuple[float, float]:
    """IoU, and the share of `a` that lies on `b`."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(w, 0) * max(h, 0)
    own, theirs = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    return shared / (own + theirs - shared), shared / own


def plain_matrix(dataset: CocoDataset, found: dict[int, Detections], limits: list[float]) -> np.ndarray:
    """The rule of the documentation, told once more: classes first, then whatever is left."""
    size = len(dataset.class_names)
    counts = np.zeros((size + 1, size + 1), int)
    for record in dataset.records:
        detections = [d for d in found[record.id] if d.score >= np.float32(limits[d.label])]
        free = [g for g in range(len(record.labels)) if not record.crowd[g]]
        regions = [g for g in range(len(record.labels)) if record.crowd[g]]
        boxes = record.boxes_xyxy.tolist()
        left = []
        for d in detections:
            fitting = [(plain_iou(list(d.box_xyxy), boxes[g])[0], g) for g in free if record.labels[g] == d.label]
            fitting = [pair for pair in fitting if pair[0] >= 0.5]
            on_region = any(
                plain_iou(list(d.box_xyxy), boxes[g])[1] >= 0.5 for g in regions if record.labels[g] in (d.label, -1)
            )
            if fitting:
                free.remove(max(fitting)[1])
                counts[d.label, d.label] += 1
            elif not on_region:
                left.append(d)
        for d in left:
            fitting = [(plain_iou(list(d.box_xyxy), boxes[g])[0], g) for g in free]
            fitting = [pair for pair in fitting if pair[0] >= 0.5]
            if fitting:
                g = max(fitting)[1]
                free.remove(g)
                counts[record.labels[g], d.label] += 1
            else:
                counts[size, d.label] += 1
        for g in free:
            counts[record.labels[g], size] += 1
    return counts


@pytest.mark.parametrize(("seed", "crowds"), [(0, 0.0), (1, 0.3), (2, 0.5)])
def test_it_is_the_rule_and_agrees_with_the_table(seed: int, crowds: float) -> None:
    dataset, found = random_scene(seed, images=25, crowds=crowds)
    matches = match(found, dataset)
    class_curves = curves(matches, dataset.class_names)
    limits, _ = recommended(class_curves, 0.3)
    counts = confusion(matches, dataset.class_names, limits).counts
    np.testing.assert_array_equal(counts, plain_matrix(dataset, found, limits.tolist()))
    assert counts[-1, -1] == 0 and counts[2, :2].sum() > 0  # the class that is never reported is taken for others
    for label, curve in enumerate(class_curves):
        point = curve.at(limits[label])
        assert counts[label].sum() == curve.objects
        if curve.objects:
            assert counts[label, label] == round(point.recall * curve.objects)
        assert counts[:, label].sum() == np.count_nonzero(curve.scores >= np.float32(limits[label]))


def test_empty_sets_and_a_crowd() -> None:
    limits = np.full(4, 0.2)
    dataset, found = random_scene(found=False)
    counts = confusion(match(found, dataset), dataset.class_names, limits).counts
    assert counts[:, -1].sum() == counts.sum() > 0
    dataset, found = random_scene(objects=False)
    matrix = confusion(match(found, dataset), dataset.class_names, limits)
    assert matrix.counts[-1].sum() == matrix.counts.sum() > 0 and matrix.pairs() == []
    assert not confusion((), dataset.class_names, limits).counts.any()
    dataset, found = random_scene(found=False, crowds=1.0)
    assert not confusion(match(found, dataset), dataset.class_names, limits).counts.any()


def test_pairs_are_the_most_frequent_first() -> None:
    dataset, found = random_scene(3, images=40)
    matrix = confusion(match(found, dataset), dataset.class_names, np.zeros(4))
    pairs = matrix.pairs(3)
    times = [n for _, _, n in pairs]
    between = matrix.counts[:-1, :-1] - np.diag(np.diag(matrix.counts[:-1, :-1]))
    expected = [n for n in sorted(between.ravel().tolist())[::-1][:3] if n]
    assert len(times) > 1 and times == expected and all(t != r for t, r, _ in pairs)


def test_the_worst_images_are_those_with_the_lowest_f1() -> None:
    dataset, found = random_scene(5, images=20)
    evaluation = judged(dataset, found)
    measurement = measure(evaluation, dataset)
    worst = worst_images(measurement)
    assert len(worst) > 5 and [s.f1 for s in worst] == sorted(s.f1 for s in worst)
    diagonal = int(np.trace(measurement.confusion.counts))
    matches, perfect = evaluation.matches, set(range(20)) - {s.index for s in worst}
    assert sum(s.found for s in worst) + sum(int((~matches[i].record.crowd).sum()) for i in perfect) == diagonal
    objects = sum(curve.objects for curve in measurement.curves)
    assert diagonal + sum(s.missed for s in worst) == objects


# From here on: VOC's protocol, against a plain telling of its kit
def plain_voc(dataset: CocoDataset, found: dict[int, Detections], label: int, eleven: bool) -> float:
    """VOCevaldet.m with lists, dictionaries and fractions."""
    objects, total = {}, 0
    for record in dataset.records:
        mine = [
            (box, bool(crowd))
            for box, cls, crowd in zip(record.boxes_xyxy.tolist(), record.labels, record.crowd, strict=True)
            if cls in (label, -1)
        ]
        objects[record.id] = mine
        total += sum(not difficult for _, difficult in mine)
    if not total:
        return math.nan
    rows = [(d.score, r.id, d.box_xyxy) for r in dataset.records for d in found[r.id] if d.label == label]
    rows.sort(key=lambda row: -row[0])
    taken, tp, fp, points = set(), 0, 0, []
    for _, image_id, (x1, y1, x2, y2) in rows:
        best, chosen = -1.0, -1
        for number, ((a1, b1, a2, b2), _) in enumerate(objects[image_id]):
            w, h = min(x2, a2) - max(x1, a1), min(y2, b2) - max(y1, b1)
            if w > 0 and h > 0:
                overlap = w * h / ((x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - w * h)
                if overlap > best:
                    best, chosen = overlap, number
        if best >= 0.5:
            if objects[image_id][chosen][1]:
                continue
            if (image_id, chosen) not in taken:
                taken.add((image_id, chosen))
                tp += 1
            else:
                fp += 1
        else:
            fp += 1
        points.append((Fraction(tp, total), Fraction(tp, tp + fp)))
    if eleven:
        return float(sum(max((p for r, p in points if r >= Fraction(t, 10)), default=0) for t in range(11)) / 11)
    value, before = Fraction(0), Fraction(0)
    for i, (recall, _) in enumerate(points):
        value += (recall - before) * max(p for _, p in points[i:])
        before = recall
    return float(value)


@pytest.mark.parametrize("difficult", [0.0, 0.3])
@pytest.mark.parametrize("tie", [False, True])
def test_it_is_the_development_kits(difficult: float, tie: bool) -> None:
    for seed in range(5):
        dataset, found = random_scene(seed, images=15, crowds=difficult, tie=tie)
        for year in ("voc07", "voc12"):
            values = voc_ap(found, dataset, year)
            for label, name in enumerate(dataset.class_names):
                expected = 100 * plain_voc(dataset, found, label, year == "voc07")
                assert values[name] == pytest.approx(expected, abs=1e-9, nan_ok=True)
        assert values["cat"] == 0 and math.isnan(values["dog"]) and values["ant"] > 5


def test_recalls_are_compared_exactly() -> None:
    """3 of 10 objects is a recall of 0.3, although 3 * 0.1 is more than 0.3 in floating point."""
    found = np.array([1, 2, 3])
    assert ap11(found, 10) == pytest.approx(4 / 11) and area(found, 10) == pytest.approx(0.3)
    nothing = np.zeros(0, np.int64)
    assert ap11(nothing, 10) == area(nothing, 10) == 0


def test_empty_sets() -> None:
    dataset, found = random_scene(objects=False)
    assert all(math.isnan(v) for v in voc_ap(found, dataset, "voc07").values())
    dataset, found = random_scene(found=False)
    assert list(voc_ap(found, dataset, "voc12").values())[:3] == [0, 0, 0]
    assert all(math.isnan(v) for v in voc_ap({}, dataset, "voc12").values())
