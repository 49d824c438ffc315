"""The portable NMS against one box after another, as every textbook has it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from isodet.errors import ArgumentError
from models.deploy.nms import keep_until_stable, suppression
from tests.at_fault import raises


def greedy(boxes: np.ndarray, labels: np.ndarray, threshold: float) -> list[bool]:
    """Best first: a box is kept unless a kept better one of its class overlaps it by more than `threshold`."""
    standing: list[int] = []
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        for j in standing:
            a1, b1, a2, b2 = boxes[j]
            overlap = max(0.0, min(x2, a2) - max(x1, a1)) * max(0.0, min(y2, b2) - max(y1, b1))
            union = (x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - overlap
            if labels[i] == labels[j] and union > 0 and float(np.float32(overlap) / np.float32(union)) > threshold:
                break
        else:
            standing.append(i)
    return [i in standing for i in range(len(boxes))]


def torchvision_nms(boxes: np.ndarray, those: np.ndarray, threshold: float) -> np.ndarray:
    """Indices of the boxes that stand of `those`, sorted by falling score."""
    index = np.flatnonzero(those)
    ranks = torch.arange(len(index), 0, -1, dtype=torch.float32)
    return index[torchvision.ops.nms(torch.from_numpy(boxes[index]), ranks, threshold).numpy()]


def kept_of(boxes: torch.Tensor, labels: torch.Tensor, threshold: float) -> torch.Tensor:
    """[B, K]: which of the boxes, best first, the graph's NMS keeps."""
    return keep_until_stable(suppression(boxes, labels, threshold).float())[0]


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 40), st.sampled_from([1, 3]), st.sampled_from([0.3, 0.5, 0.6, 0.65, 1.0])
)
def test_it_is_greedy_suppression(seed, count, classes, threshold):
    rng = np.random.default_rng(seed)
    # On a grid of whole pixels, so that equal boxes, touching boxes, boxes without area and exact ratios happen.
    corners = rng.integers(0, 40, (2, count, 2))
    boxes = np.concatenate([corners, corners + rng.integers(0, 24, (2, count, 2))], axis=-1).astype(np.float32)
    labels = rng.integers(0, classes, (2, count))
    kept = kept_of(torch.from_numpy(boxes), torch.from_numpy(labels), threshold)
    assert kept.tolist() == [greedy(b.astype(float), c, threshold) for b, c in zip(boxes, labels, strict=True)]


@given(st.integers(0, 2**32 - 1), st.sampled_from([150, 151, 299, 601, 1000]))
@settings(max_examples=12, deadline=None)
def test_it_is_greedy_suppression_where_rows_come_in_strips(seed, count):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 300, (1, count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0, 60, (1, count, 2))], axis=-1).astype(np.float32)
    labels = rng.integers(0, 2, (1, count))
    kept = kept_of(torch.from_numpy(boxes), torch.from_numpy(labels), 0.5)[0].nonzero().flatten()
    expected = [torchvision_nms(boxes[0], labels[0] == label, 0.5) for label in range(2)]
    assert kept.tolist() == sorted(np.concatenate(expected).tolist())


@pytest.mark.parametrize("length", [2, 9, 16, 17])
def test_chains_as_long_as_the_rounds_are_exact(length):
    """Each box overlaps only its neighbors: every second one is kept."""
    boxes = torch.tensor([[[10.0 * i, 0.0, 10.0 * i + 30.0, 10.0] for i in range(length)]])
    labels = torch.zeros(1, length, dtype=torch.int64)
    assert kept_of(boxes, labels, 0.45)[0].tolist() == [i % 2 == 0 for i in range(length)]


def test_a_longer_chain_leaves_boxes_too_many_never_too_few():
    length = 41
    boxes = torch.tensor([[[10.0 * i, 0.0, 10.0 * i + 30.0, 10.0] for i in range(length)]])
    kept = kept_of(boxes, torch.zeros(1, length, dtype=torch.int64), 0.45)[0]
    exact = torch.arange(length) % 2 == 0
    assert kept[exact].all() and kept[~exact].any()


def test_an_odd_number_of_rounds_is_refused():
    with raises(ArgumentError, key="rounds"):
        keep_until_stable(torch.zeros(1, 2, 2), rounds=3)


@pytest.mark.parametrize("height, threshold", [(5.0, 0.5), (6.0, 0.6), (3.0, 0.3), (7.0, 0.7)])
def test_overlap_equal_to_the_threshold_is_decided_as_torchvision_does(height, threshold):
    """It compares a float32 IoU with a double: 0.5 is kept, 0.6 is not, because its nearest float32 is larger."""
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, height]]])
    kept = kept_of(boxes, torch.zeros(1, 2, dtype=torch.int64), threshold)[0]
    expected = torchvision.ops.nms(boxes[0], torch.tensor([0.9, 0.8]), threshold)
    assert kept.nonzero().flatten().tolist() == expected.tolist()
