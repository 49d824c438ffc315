"""Pairing of detections, on cases that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from export.drift import drift
from runtime import Detections


def found(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4].copy(), table[:, 4].copy(), table[:, 5].astype(np.int32), ("a", "b"))


BOX = (10.0, 10.0, 30.0, 30.0, 0.9, 0)


@pytest.mark.parametrize(
    ("other", "unmatched", "box", "score"),
    [
        (found(), 1, 0, 0),
        (found(BOX), 0, 0, 0),
        (found((10, 12, 30, 33, 0.8, 0)), 0, 3, 0.1),
        (found((10, 10, 30, 30, 0.9, 1)), 1, 0, 0),  # another class
        (found((25, 25, 45, 45, 0.9, 0)), 1, 0, 0),  # elsewhere
        (found((11, 10, 30, 30, 0.9, 0), (10, 10, 30, 30, 0.5, 0)), 0, 0, 0.4),  # the best overlap counts
    ],
)
def test_one_box(other: Detections, unmatched: int, box: float, score: float) -> None:
    result = drift({7: found(BOX)}, {7: other})
    assert (result.boxes, result.unmatched) == (1, unmatched)
    assert (result.box_max_px, result.score_max) == (pytest.approx(box), pytest.approx(score))


def test_a_box_is_used_once() -> None:
    twice = found(BOX, (10, 10, 30, 30, 0.8, 0))
    assert drift({1: twice}, {1: found(BOX)}).unmatched == 1


def test_nothing_and_low_scores_are_no_drift() -> None:
    assert drift({}, {}).boxes == 0
    assert drift({1: found((0, 0, 5, 5, 0.06, 0))}, {1: found()}).boxes == 0
