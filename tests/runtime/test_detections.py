from __future__ import annotations

import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from isodet.errors import ArgumentError
from runtime.detections import Detection, Detections
from tests.at_fault import raises

NAMES = ("ant", "bee", "cat")


def three(**changes: Any) -> Detections:
    values: dict[str, Any] = {
        "boxes_xyxy": np.array([[0, 1, 10, 11], [2, 2, 4, 8], [5.128, 5, 5, 5]], np.float32),
        "scores": np.array([0.9, 0.5, 0.1], np.float32),
        "labels": np.array([2, 0, 1], np.int32),
        "class_names": NAMES,
    }
    values["boxes_xyxy"][2, 2] = 6
    return Detections(**{**values, **changes})


def test_reading() -> None:
    d = three()
    assert len(d) == 3 and d.names == ["cat", "ant", "bee"]
    assert d[0] == next(iter(d)) == Detection((0.0, 1.0, 10.0, 11.0), pytest.approx(0.9), 2, "cat")
    assert d[-1].name == "bee"
    assert d[np.array([True, False, True])].labels.tolist() == [2, 1]
    assert d[1:].names == ["ant", "bee"] and d[[False] * 3].names == [] and d[np.array([0, 2])].names == ["cat", "bee"]
    with pytest.raises(IndexError):
        d[3]
    with raises(ArgumentError, key="Detections.scores"):
        d[np.array([2, 0])]


def test_filter() -> None:
    d = three()
    assert d.filter(threshold=0.5).names == ["cat", "ant"]  # a score equal to the threshold stays
    assert d.filter(threshold=0.1).names == d.names  # compared in float32, the scores' own precision
    assert d.filter(classes=["bee", 2]).names == ["cat", "bee"] and d.filter(classes=[]).names == []
    assert d.filter(0.2, ["bee"]).names == [] and d.filter(0.6, classes=["cat", "ant"]).names == ["cat"]
    assert d.filter({"cat": 0.95, "bee": 0.1}).names == ["ant", "bee"]  # ant has no limit of its own
    with raises(ArgumentError, key="classes"):
        d.filter({"dog": 0.5})
    for bad in (["dog"], [3], [-1]):
        with raises(ArgumentError, key="classes") as error:
            d.filter(classes=bad)
        assert "known: ant, bee, cat" in str(error.value)
    with raises(ArgumentError, key="classes"):
        d.filter(classes="bee")


def test_empty() -> None:
    d = Detections.empty(list(NAMES))
    assert len(d) == 0 and d.names == [] and list(d) == [] and d.to_json() == [] and d.to_coco(1, [1, 2, 3]) == []
    assert d.filter(0.5).boxes_xyxy.shape == (0, 4) and d.class_names == NAMES and d[[]].names == []


def test_merge() -> None:
    a, b = three(), three(scores=np.array([0.95, 0.5, 0.05], np.float32))
    both = Detections.merge([a, b, Detections.empty(NAMES)])
    assert both.scores.tolist() == sorted([*a.scores.tolist(), *b.scores.tolist()], reverse=True)
    assert {tuple(box) for box in both.boxes_xyxy.tolist()} == {tuple(box) for box in a.boxes_xyxy.tolist()}
    assert both.labels.tolist() == [2, 2, 0, 0, 1, 1] and len(Detections.merge([both])) == 6
    with raises(ArgumentError, key="parts"):
        Detections.merge([a, Detections.empty(["x"])])
    with raises(ArgumentError, key="parts"):
        Detections.merge([])


def test_supervision_gets_arrays_of_its_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)  # as where it is not installed
    with pytest.raises(ImportError, match=r"pip install 'isodet\[track\]'"):
        three().to_supervision()

    @dataclass
    class TheirDetections:
        xyxy: np.ndarray
        confidence: np.ndarray
        class_id: np.ndarray
        data: dict[str, np.ndarray]

    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=TheirDetections))
    theirs = three().to_supervision()
    assert theirs.xyxy.tolist() == three().boxes_xyxy.tolist() and theirs.class_id.tolist() == [2, 0, 1]
    assert theirs.class_id.dtype.kind == "i" and theirs.data["class_name"].tolist() == ["cat", "ant", "bee"]
    assert Detections.empty(NAMES).to_supervision().data["class_name"].shape == (0,)


def test_json_and_coco() -> None:
    d = three()
    assert d.to_json()[2] == {"box_xyxy": [5.13, 5.0, 6.0, 5.0], "score": 0.1, "label": 1, "name": "bee"}
    assert d.to_coco(7, [10, 20, 30])[1] == {"image_id": 7, "category_id": 10, "bbox": [2, 2, 2, 6], "score": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.array([0.9, 0.5, 0.1])}, r"scores: expected a NumPy array float32 \[3\], got float64 \[3\]"),
        ({"scores": [0.9, 0.5, 0.1]}, r"scores: expected a NumPy array float32 \[D\], got list"),
        ({"boxes_xyxy": np.zeros((2, 4), np.float32)}, r"boxes_xyxy: expected .* \[3, 4\], got float32 \[2, 4\]"),
        ({"boxes_xyxy": np.zeros((3, 5), np.float32)}, r"boxes_xyxy: expected .* \[3, 4\], got float32 \[3, 5\]"),
        ({"labels": np.zeros(3, np.int64)}, r"labels: expected a NumPy array int32 \[3\], got int64"),
        ({"labels": np.array([0, 3, 0], np.int32)}, r"labels: expected 0 to 2, got 3 \(row 1\)"),
        ({"labels": np.array([0, 0, -1], np.int32)}, r"labels: expected 0 to 2, got -1 \(row 2\)"),
        ({"scores": np.array([0.1, 0.5, 0.9], np.float32)}, "expected descending"),
        ({"scores": np.array([1.5, 0.5, 0.1], np.float32)}, r"expected 0 to 1, got 1.5 \(row 0\)"),
        ({"scores": np.array([0.9, np.nan, 0.1], np.float32)}, r"expected 0 to 1, got nan \(row 1\)"),
        ({"boxes_xyxy": np.full((3, 4), np.nan, np.float32)}, "expected finite pixels"),
        ({"boxes_xyxy": np.array([[5, 0, 4, 1]] * 3, np.float32)}, r"expected x1 <= x2 and y1 <= y2, got \[5.0"),
    ],
)
def test_what_is_wrong_is_refused_at_birth(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        three(**change)
