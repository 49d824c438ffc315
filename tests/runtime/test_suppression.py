"""NMS on the host: as plain greedy NMS does it, over the borders of its blocks, and with a lowest score."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime import suppression
from runtime.backends.protocol import RawOutputs
from runtime.suppression import suppress


def greedy(boxes: NDArray[np.float32], labels: NDArray[np.int32], iou_threshold: float, most: int) -> list[int]:
    """Box by box, each against each that is kept."""
    kept: list[int] = []
    for i, box in enumerate(boxes):
        for j in kept:
            width = max(min(box[2], boxes[j, 2]) - max(box[0], boxes[j, 0]), np.float32(0))
            height = max(min(box[3], boxes[j, 3]) - max(box[1], boxes[j, 1]), np.float32(0))
            overlap = width * height
            union = (box[2] - box[0]) * (box[3] - box[1]) + (boxes[j, 2] - boxes[j, 0]) * (
                boxes[j, 3] - boxes[j, 1]
            ) - overlap  # fmt: skip
            if labels[i] == labels[j] and union > 0 and overlap / union > iou_threshold:
                break
        else:
            kept.append(i)
    return kept[:most]


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suppression, "_BLOCK", 7)
        yield


@given(
    st.integers(0, 2**32 - 1), st.integers(0, 60), st.integers(1, 25), st.sampled_from([0.5, 0.3, 0.0, 1.0]),
    st.booleans(),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_as_greedy_nms_over_all_blocks(seed, count, most, iou_threshold, chain):
    rng = np.random.default_rng(seed)
    if chain:  # each overlaps its neighbors only
        x = np.arange(count, dtype=np.float32) * 10
        boxes, labels = np.stack([x, 0 * x, x + 30, 0 * x + 10], axis=-1), np.zeros(count, np.int32)
    else:  # whole pixels: equal, touching and empty boxes, and overlaps of exactly one half, happen
        corners = rng.integers(0, 20, (count, 2))
        boxes = np.concatenate([corners, corners + rng.integers(0, 12, (count, 2))], axis=-1).astype(np.float32)
        labels = rng.integers(0, 2, count).astype(np.int32)
    scores = np.sort(rng.integers(0, 12, count) / 12)[::-1].astype(np.float32)
    for lowest in (0.0, 0.5):
        (n,), out, values, classes = (
            column[0] for column in suppress(
                RawOutputs(None, boxes[None], scores[None], labels[None]), iou_threshold, most, lowest
            )[:4]
        )  # fmt: skip
        real = (scores > 0) & (scores >= lowest)
        kept = greedy(boxes[real], labels[real], iou_threshold, min(most, count))
        assert n == len(kept)
        assert (out[:n] == boxes[real][kept]).all() and (values[:n] == scores[real][kept]).all()
        assert (classes[:n] == labels[real][kept]).all() and not out[n:].any() and not values[n:].any()


def test_what_is_left_out_below_a_score_changes_nothing_above_it():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 50, (4, 200, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 30, (4, 200, 2))], axis=-1).astype(np.float32)
    scores, labels = rng.random((4, 200)).astype(np.float32), rng.integers(0, 3, (4, 200)).astype(np.int32)
    candidates = RawOutputs(None, boxes, scores, labels)
    whole, above = suppress(candidates, 0.5, 100), suppress(candidates, 0.5, 100, 0.7)
    assert whole.num_dets is not None and above.num_dets is not None
    for i in range(4):
        n = int(above.num_dets[i, 0])
        assert n == np.count_nonzero(whole.scores[i] >= np.float32(0.7)) > 5
        assert (above.boxes[i, :n] == whole.boxes[i, :n]).all() and (above.labels[i, :n] == whole.labels[i, :n]).all()
