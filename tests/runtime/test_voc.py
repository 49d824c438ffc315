"""VOC's protocol against a plain telling of the development kit."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from runtime.datasets.annotations import CocoDataset
from runtime.detections import Detections
from runtime.evaluation.voc import ap11, area, voc_ap

Scene = Callable[..., tuple[CocoDataset, dict[int, Detections]]]


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
def test_it_is_the_development_kits(scene: Scene, difficult: float, tie: bool) -> None:
    for seed in range(5):
        dataset, found = scene(seed, images=15, crowds=difficult, tie=tie)
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


def test_empty_sets(scene: Scene) -> None:
    dataset, found = scene(objects=False)
    assert all(math.isnan(v) for v in voc_ap(found, dataset, "voc07").values())
    dataset, found = scene(found=False)
    assert list(voc_ap(found, dataset, "voc12").values())[:3] == [0, 0, 0]
    assert all(math.isnan(v) for v in voc_ap({}, dataset, "voc12").values())
