"""Ways to merge overlapping candidates into detections, for evaluation: greedy NMS, soft-NMS, weighted boxes fusion.

All work class by class on the candidates of one image, given by falling score, and return them by falling score.
They run in NumPy in double precision, and follow the steps of their papers. The exported graph has greedy
NMS only (`models.deploy.nms`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.evaluation.matching import pairwise_iou

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


def greedy_nms(candidates: Candidates, iou: float) -> Candidates:
    """What greedy class-aware NMS keeps: a kept box suppresses those of lower score that it overlaps by more than
    `iou`."""

    def keep(one_class: Candidates) -> Candidates:
        overlaps = pairwise_iou(one_class.boxes_xyxy, one_class.boxes_xyxy)
        kept = np.ones(len(one_class.scores), np.bool_)
        for i in range(len(kept)):
            if kept[i]:
                kept[i + 1 :] &= overlaps[i, i + 1 :] <= iou
        return one_class.take(kept)

    return _by_class(candidates, keep)


def soft_nms(
    candidates: Candidates, decay: Literal["gaussian", "linear"], lowest: float,
    sigma: float = SIGMA, iou: float = SOFT_IOU,
) -> Candidates:  # fmt: skip
    """Soft-NMS (Bodla et al., ICCV 2017, figure 2): the best box left lowers the scores of those that overlap it.

    By exp(-IoU^2 / sigma), or from `iou` on by 1 - IoU. Boxes that fall to `lowest` or below are dropped on the way.
    """

    def lower(one_class: Candidates) -> Candidates:
        overlaps = pairwise_iou(one_class.boxes_xyxy, one_class.boxes_xyxy)
        factors = np.exp(-(overlaps**2) / sigma) if decay == "gaussian" else np.where(overlaps >= iou, 1 - overlaps, 1)
        scores, left = one_class.scores.copy(), one_class.scores > lowest
        kept: list[int] = []
        while left.any():
            best = int(np.where(left, scores, -1).argmax())
            kept.append(best)
            left[best] = False
            scores[left] *= factors[best, left]
            left &= scores > lowest
        order = np.array(kept, np.int64)
        return Candidates(one_class.boxes_xyxy[order], scores[order], one_class.labels[order])

    return _by_class(candidates, lower)


def weighted_boxes_fusion(candidates: Candidates, views: int = 1, iou: float = WBF_IOU) -> Candidates:
    """Weighted boxes fusion (Solovyev et al., 2021, section 3.1): clusters of boxes become their weighted mean.

    By falling score each candidate joins the cluster whose fused box it overlaps most, if by more than `iou`, else it
    founds one. A fused box is the mean of its candidates weighted with their scores (equations 2, 3), its score their
    mean (1), times min(T, N) / N (6) for T candidates from N `views`: what only few views see counts less.
    """

    def fuse(one_class: Candidates) -> Candidates:
        count = len(one_class.scores)
        fused, mass, members = np.zeros((count, 4)), np.zeros(count), np.zeros(count, np.int64)
        clusters = 0
        for box, score in zip(one_class.boxes_xyxy, one_class.scores, strict=True):
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
        return Candidates(fused[:clusters], scores, one_class.labels[:clusters])

    return _by_class(candidates, fuse)


def _by_class(candidates: Candidates, one: Callable[[Candidates], Candidates]) -> Candidates:
    """`one` for the candidates of each class; all results by falling score."""
    parts = [one(candidates.take(candidates.labels == label)) for label in np.unique(candidates.labels)]
    if not parts:
        return candidates
    return Candidates(*(np.concatenate(columns) for columns in zip(*parts, strict=True))).ranked()
