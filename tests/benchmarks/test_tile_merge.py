"""The simulation of the merge: what its rules have in common with `Grid.merge`, and what it counts."""

from __future__ import annotations

import numpy as np
import pytest
from pytest import CaptureFixture

from benchmarks.tile_merge import CLASSES, RULES, Looks, doubles_and_lost, looks, main, merged
from runtime import Detections
from runtime.tiles import Grid, Window


@pytest.mark.parametrize("kind", ["apart", "close"])
def test_the_rules_differ_above_a_threshold_of_a_half_only(kind: str) -> None:
    rng = np.random.default_rng(0)
    for threshold in (0.3, 0.5, 0.7):
        counts = {"nms": 0, "isodet": 0, "lower": 0}
        for _ in range(2):
            seen = looks(rng, kind, 2.0, threshold)
            kept = {rule: merged(seen, threshold, rule) for rule in counts}
            if threshold <= 0.5:
                assert len({str(sorted(d.boxes_xyxy.tolist())) for d in kept.values()}) == 1
            for rule, detections in kept.items():
                counts[rule] += len(detections)
        assert counts["lower"] > 100
        assert threshold <= 0.5 or counts["nms"] > counts["isodet"] >= counts["lower"]


def of(*rows: tuple[list[float], float]) -> Detections:
    boxes = np.array([box for box, _ in rows], np.float32).reshape(-1, 4)
    return Detections(boxes, np.array([s for _, s in rows], np.float32), np.zeros(len(rows), np.int32), CLASSES)


def test_a_neighbor_is_not_taken_for_the_object_and_a_double_is() -> None:
    """Two objects side by side, IoU 0.54, of which a tile sees one; then one object, seen with an IoU of 0.54."""
    grid = Grid((100, 100), (Window(0, 0, 60, 100), Window(0, 0, 100, 100)))
    one, other = [10, 10, 40, 40], [19, 10, 49, 40]
    both = Looks(np.array([one, other], float), np.zeros(2, np.int64), grid, [
        of((one, 0.9)), of((one, 0.8), (other, 0.75)),
    ])  # fmt: skip
    assert {rule: len(merged(both, 0.6, rule)) for rule in RULES} == {"nms": 2, "lower": 1, "isodet": 2}
    twice = Looks(np.array([one], float), np.zeros(1, np.int64), grid, [of((one, 0.9)), of((other, 0.8))])
    counts = {rule: doubles_and_lost(twice, merged(twice, 0.6, rule)) for rule in RULES}
    assert counts == {"nms": (1, 0), "lower": (0, 0), "isodet": (0, 0)}
    assert doubles_and_lost(both, merged(both, 0.6, "lower")) == (0, 0)  # what is left overlaps both by 0.5
    assert doubles_and_lost(both, of()) == (0, 2)


def test_the_command_prints_a_table(capsys: CaptureFixture[str]) -> None:
    assert main(["--frames", "1", "--seeds", "0", "--thresholds", "0.6"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 * 2 * 3 and all(line.count("|") == 9 for line in lines)
