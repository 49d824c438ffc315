"""The confusion matrix against plain loops, and against the numbers that it must agree with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from runtime.datasets.annotations import CocoDataset
from runtime.detections import Detections
from runtime.evaluation.confusion import confusion
from runtime.evaluation.curves import curves, recommended
from runtime.evaluation.matching import match
from runtime.evaluation.worst import worst_images

Scene = Callable[..., tuple[CocoDataset, dict[int, Detections]]]


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
def test_it_is_the_rule_and_agrees_with_the_table(scene: Scene, seed: int, crowds: float) -> None:
    dataset, found = scene(seed, images=25, crowds=crowds)
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


def test_empty_sets_and_a_crowd(scene: Scene) -> None:
    limits = np.full(4, 0.2)
    dataset, found = scene(found=False)
    counts = confusion(match(found, dataset), dataset.class_names, limits).counts
    assert counts[:, -1].sum() == counts.sum() > 0
    dataset, found = scene(objects=False)
    matrix = confusion(match(found, dataset), dataset.class_names, limits)
    assert matrix.counts[-1].sum() == matrix.counts.sum() > 0 and matrix.pairs() == []
    assert not confusion((), dataset.class_names, limits).counts.any()
    dataset, found = scene(found=False, crowds=1.0)
    assert not confusion(match(found, dataset), dataset.class_names, limits).counts.any()


def test_pairs_are_the_most_frequent_first(scene: Scene) -> None:
    dataset, found = scene(3, images=40)
    matrix = confusion(match(found, dataset), dataset.class_names, np.zeros(4))
    pairs = matrix.pairs(3)
    times = [n for _, _, n in pairs]
    between = matrix.counts[:-1, :-1] - np.diag(np.diag(matrix.counts[:-1, :-1]))
    expected = [n for n in sorted(between.ravel().tolist())[::-1][:3] if n]
    assert len(times) > 1 and times == expected and all(t != r for t, r, _ in pairs)


def test_the_worst_images_are_those_with_the_lowest_f1(scene: Scene) -> None:
    from runtime.evaluation.details import measure
    from runtime.evaluation.evaluate import Evaluation

    dataset, found = scene(5, images=20)
    matches = match(found, dataset)
    evaluation = Evaluation(
        *[0.0] * 7, threshold=0.3, per_class=dict.fromkeys(dataset.class_names, 0.0), images=20, seconds=0.0,
        skipped=(), detections=found, matches=matches,
    )  # fmt: skip
    measurement = measure(evaluation, dataset)
    worst = worst_images(measurement)
    assert len(worst) > 5 and [s.f1 for s in worst] == sorted(s.f1 for s in worst)
    diagonal = int(np.trace(measurement.confusion.counts))
    perfect = set(range(20)) - {s.index for s in worst}
    assert sum(s.found for s in worst) + sum(int((~matches[i].record.crowd).sum()) for i in perfect) == diagonal
    objects = sum(curve.objects for curve in measurement.curves)
    assert diagonal + sum(s.missed for s in worst) == objects
