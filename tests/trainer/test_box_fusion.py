"""Soft-NMS, weighted boxes fusion and greedy NMS against their papers' pseudo-code with plain lists."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import batched_nms

from models.deploy.nms import keep_until_stable, suppression
from trainer.tta.box_fusion import Candidates, greedy_nms, merge, soft_nms, weighted_boxes_fusion

Row = tuple[list[float], float, int]


def random_candidates(seed: int, count: int, ties: bool = False) -> Candidates:
    rng = np.random.default_rng(seed)
    centers = rng.uniform(10, 60, (max(1, count // 4), 2))
    corner = centers[rng.integers(0, len(centers), count)] + rng.normal(0, 3, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(6, 30, (count, 2))], axis=1)
    scores = rng.uniform(0.01, 1, count)
    labels = rng.integers(0, 3, count)
    return Candidates(boxes, np.round(scores, 1) + 0.01 if ties else scores, labels).ranked()


def plain_iou(a: list[float], b: list[float]) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(w, 0.0) * max(h, 0.0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def rows_of(candidates: Candidates) -> list[Row]:
    return [(b, s, c) for b, s, c in zip(*(column.tolist() for column in candidates), strict=True)]


def plain_soft(rows: list[Row], gaussian: bool, lowest: float) -> list[Row]:
    """Figure 2 of Bodla et al.: take the best of B into D, rescore the others, until B is empty."""
    done: list[Row] = []
    for label in {c for _, _, c in rows}:
        left = [row for row in rows if row[2] == label]
        while left:
            best = max(left, key=lambda row: row[1])
            left.remove(best)
            if best[1] <= lowest:
                continue
            done.append(best)
            scored = []
            for box, score, c in left:
                overlap = plain_iou(best[0], box)
                if gaussian:
                    score *= math.exp(-(overlap**2) / 0.5)
                elif overlap >= 0.3:
                    score *= 1 - overlap
                scored.append((box, score, c))
            left = scored
    return sorted(done, key=lambda row: -row[1])


def plain_wbf(rows: list[Row], views: int) -> list[Row]:
    """Section 3.1 of Solovyev et al.: lists L of clusters and F of their boxes, both recomputed at each step."""
    done: list[Row] = []
    for label in {c for _, _, c in rows}:
        clusters: list[list[Row]] = []
        fused: list[list[float]] = []
        for row in (r for r in rows if r[2] == label):
            overlaps = [plain_iou(row[0], box) for box in fused]
            if overlaps and max(overlaps) > 0.55:
                chosen = overlaps.index(max(overlaps))
                clusters[chosen].append(row)
            else:
                chosen = len(clusters)
                clusters.append([row])
                fused.append([])
            mass = sum(s for _, s, _ in clusters[chosen])
            fused[chosen] = [sum(s * b[i] for b, s, _ in clusters[chosen]) / mass for i in range(4)]
        for cluster, box in zip(clusters, fused, strict=True):
            mean = sum(s for _, s, _ in cluster) / len(cluster)
            done.append((box, mean * min(len(cluster), views) / views, label))
    return sorted(done, key=lambda row: -row[1])


def same(ours: Candidates, theirs: list[Row]) -> None:
    def key(row: Row) -> tuple[float, ...]:
        return (-round(row[1], 9), row[2], *(round(v, 6) for v in row[0]))

    mine, theirs = sorted(rows_of(ours), key=key), sorted(theirs, key=key)
    assert len(mine) == len(theirs)
    for a, b in zip(mine, theirs, strict=True):
        assert a[1] == pytest.approx(b[1], rel=1e-9) and a[2] == b[2]
        np.testing.assert_allclose(a[0], b[0], rtol=1e-9)
    assert (np.diff(ours.scores) <= 0).all()


some = given(seed=st.integers(0, 10_000), count=st.integers(0, 40))


@some
def test_soft_nms_is_the_papers(seed, count):
    candidates = random_candidates(seed, count)
    for decay in ("gaussian", "linear"):
        same(soft_nms(candidates, decay, 0.05), plain_soft(rows_of(candidates), decay == "gaussian", 0.05))


@given(seed=st.integers(0, 10_000), count=st.integers(0, 40), views=st.integers(1, 4))
def test_weighted_boxes_fusion_is_the_papers(seed, count, views):
    candidates = random_candidates(seed, count)
    same(weighted_boxes_fusion(candidates, views), plain_wbf(rows_of(candidates), views))


@some
def test_greedy_nms_is_torchvisions_and_the_graphs(seed, count):
    candidates = random_candidates(seed, count, ties=True)
    kept = greedy_nms(candidates, 0.5)
    boxes, scores, labels = (torch.from_numpy(column) for column in candidates)
    theirs = batched_nms(boxes, scores, labels, 0.5)
    assert sorted(rows_of(kept)) == sorted(rows_of(candidates.take(theirs.numpy())))
    if count:
        graphs = keep_until_stable(suppression(boxes[None], labels[None], 0.5).float())[0][0].numpy()
        assert sorted(rows_of(kept)) == sorted(rows_of(candidates.take(graphs)))


def test_soft_nms_lowers_what_overlaps_and_nothing_else():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 5, 10, 15], [50, 50, 60, 60], [0, 0, 10, 10]], float)
    found = Candidates(boxes, np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([0, 0, 0, 0, 1]))
    linear = soft_nms(found, "linear", 0.05)  # the double goes, a third of overlap costs a third
    assert linear.scores.tolist() == pytest.approx([0.9, 0.6, 0.5, 0.7 * 2 / 3])
    gaussian = soft_nms(found, "gaussian", 0.05)
    # The double is lowered by the best, with which it is one, and by the third, which a third of it overlaps.
    assert sorted(gaussian.scores)[0] == pytest.approx(0.8 * math.exp(-2) * math.exp(-2 / 9))


@pytest.mark.parametrize("nms", ["hard", "soft", "soft-linear", "wbf"])
def test_merging_drops_what_is_low_and_takes_nothing(nms):
    candidates = random_candidates(3, 30)
    merged = merge(candidates.take(np.arange(30)[::-1]), nms, 0.5, 0.2, views=2)
    assert len(merged.scores) and (merged.scores > 0.2).all() and (np.diff(merged.scores) <= 0).all()
    nothing = merge(candidates, nms, 0.5, 1.0)
    assert nothing.boxes_xyxy.shape == (0, 4)
