"""The comparison of graphs lets go of a box on an edge, and of no other."""

from runtime import Card
from tests.export.edges import found, unexplained


def test_the_edges():
    nms = {"kind": "auto", "iou": 0.5, "candidates": 9, "detections": 3}
    card = Card("onnx", ("a", "b"), (64, 64), 0.1, nms)
    best = (0, 0, 20, 20, 0.9, 0)
    assert unexplained(found(best), found((0, 0, 20.04, 20, 0.9005, 0)), card) == []
    assert unexplained(found(best), found(), card) == [0]
    assert unexplained(found(best), found((*best[:5], 1)), card) == [0]  # another class
    half, less = (0, 0, 20, 10.01, 0.8, 0), (0, 0, 20, 9.6, 0.8, 0)  # of overlap 0.5005 and 0.48 with the best
    assert unexplained(found(best, half), found(best), card) == []
    assert unexplained(found(best, less), found(best), card) == [1]
    assert unexplained(found(best), found(half), card) == [0]  # nothing that scores less takes it away
    assert unexplained(found((0, 0, 9, 9, 0.1005, 1)), found(), card) == []
    assert unexplained(found((0, 0, 9, 9, 0.102, 1)), found(), card) == [0]
    last = (0, 0, 9, 9, 0.7005, 1)
    full = [(30 * i, 30, 30 * i + 9, 39, 0.7, 1) for i in range(3)]
    assert unexplained(found(last, *full), found(*full), card) == []  # there is no room for it
    assert unexplained(found(last, *full[:2]), found(*full[:2]), card) == [0]
