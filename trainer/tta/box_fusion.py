"""Ways to merge overlapping candidates into detections, for evaluation: greedy NMS, soft-NMS, weighted boxes fusion.

All work class by class on the candidates of one image, given by falling score, and return them by falling score.
They run in NumPy in double precision, and follow the steps of their papers. The exported graph has greedy
NMS only (`models.deploy.nms`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Concatenate, Literal, NamedTuple, ParamSpec

import numpy as np
from numpy.typing import NDArray

from runtime.evaluation.matching import pairwise_iou

P = ParamSpec("P")
Nms = Literal["hard", "soft", "soft-linear", "wbf"]
SIGMA = 0.5
"""Width of the Gaussian, as Bodla et al. use it."""
SOFT_IOU = 0.3
"""The linear form lowers scores from this overlap on (Bodla et al., section 6)."""
WBF_IOU = 0.55
"""A candidate joins a cluster from this overlap with its box on (Solovyev et al., section 3.1)."""


class Candidates(NamedTuple):
    """K boxes of one image, by falling score."""

    boxes_xyxy: NDArray[np.float64]
    """[K, 4] pixels"""
    scores: NDArray[np.float64]
    """[K]"""
    labels: NDArray[np.int64]
    """[K]"""

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> Candidates:
        return Candidates(self.boxes_xyxy[index], self.scores[index], self.labels[index])

    def ranked(self) -> Candidates:
        """By falling score; equal scores keep their order."""
        return self.take(np.argsort(-self.scores, kind="stable"))


def merge(candidates: Candidates, nms: Nms, iou: float, lowest: float, views: int = 1) -> Candidates:
    """Merge candidates of any order.

    nms: `hard` at `iou`, `soft` (Gaussian), `soft-linear`, or `wbf` over that many `views` of the image. `lowest`:
    boxes whose score falls to it or below are dropped.
    """
    candidates = candidates.take(candidates.scores > lowest).ranked()
    if nms == "hard":
        merged = greedy_nms(candidates, iou)
    elif nms == "wbf":
        merged = weighted_boxes_fusion(candidates, views)
    else:
        merged = soft_nms(candidates, "gaussian" if nms == "soft" else "linear", lowest)
    return merged.take(merged.scores > lowest)


Merging = Callable[Concatenate[Candidates, P], Candidates]


def by_class(one: Merging[P]) -> Merging[P]:
    """Let `one`, which is for candidates of one class, take those of all classes; it gives them by falling score."""

    @wraps(one)
    def merge_all(candidates: Candidates, *args: P.args, **kwargs: P.kwargs) -> Candidates:
        labels = np.unique(candidates.labels)
        parts = [one(candidates.take(candidates.labels == label), *args, **kwargs) for label in labels]
        return join(parts).ranked() if parts else candidates

    return merge_all


def join(parts: Sequence[Candidates]) -> Candidates:
    """The candidates of all `parts`, of which there is at least one."""
    return Candidates(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


@by_class
def greedy_nms(candidates: Candidates, iou: float) -> Candidates:
    """What greedy class-aware NMS keeps: a kept box suppresses those of lower score that it overlaps by more than
    `iou`."""
    overlaps = pairwise_iou(candidates.boxes_xyxy, candidates.boxes_xyxy)
    kept = np.ones(len(candidates.scores), np.bool_)
    for i in range(len(kept)):
        if kept[i]:
            kept[i + 1 :] &= overlaps[i, i + 1 :] <= iou
    return candidates.take(kept)


@by_class
def soft_nms(
    candidates: Candidates,
    decay: Literal["gaussian", "linear"],
    lowest: float,
    sigma: float = SIGMA,
    iou: float = SOFT_IOU,
) -> Candidates:
    """Soft-NMS (Bodla et al., ICCV 2017, figure 2): the best box left lowers the scores of those that overlap it.

    By exp(-IoU^2 / sigma), or from `iou` on by 1 - IoU. Boxes that fall to `lowest` or below are dropped on the way.
    """
    overlaps = pairwise_iou(candidates.boxes_xyxy, candidates.boxes_xyxy)
    factors = np.exp(-(overlaps**2) / sigma) if decay == "gaussian" else np.where(overlaps >= iou, 1 - overlaps, 1)
    scores, remaining = candidates.scores.copy(), candidates.scores > lowest
    chosen: list[int] = []
    while remaining.any():
        best = int(np.where(remaining, scores, -1).argmax())
        chosen.append(best)
        remaining[best] = False
        scores[remaining] *= factors[best, remaining]
        remaining &= scores > lowest
    order = np.array(chosen, np.int64)
    return candidates._replace(scores=scores).take(order)


@by_class
def weighted_boxes_fusion(candidates: Candidates, views: int = 1, iou: float = WBF_IOU) -> Candidates:
    """Weighted boxes fusion (Solovyev et al., 2021, section 3.1): clusters of boxes become their weighted mean.

    By falling score each candidate joins the cluster whose fused box it overlaps most, if by more than `iou`, else it
    founds one. A fused box is the mean of its candidates weighted with their scores (equations 2, 3), its score their
    mean (1), times min(T, N) / N (6) for T candidates from N `views`: what only few views see counts less.
    """
    count = len(candidates.scores)
    fused, mass, members = np.zeros((count, 4)), np.zeros(count), np.zeros(count, np.int64)
    clusters = 0
    for box, score in zip(candidates.boxes_xyxy, candidates.scores, strict=True):
        overlaps = pairwise_iou(box[None], fused[:clusters])[0]
        if clusters and overlaps.max() > iou:
            chosen = int(overlaps.argmax())
        else:
            chosen, clusters = clusters, clusters + 1
        fused[chosen] = (fused[chosen] * mass[chosen] + box * score) / (mass[chosen] + score)
        mass[chosen] += score
        members[chosen] += 1
    mean = mass[:clusters] / members[:clusters]
    scores = mean * np.minimum(members[:clusters], views) / views
    return Candidates(fused[:clusters], scores, candidates.labels[:clusters])
