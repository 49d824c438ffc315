"""ATSS: Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive
Training Sample Selection", CVPR 2020, algorithm 1.

Each object takes as positives the priors, among the few nearest to its centre on each level, whose IoU with
it is at least mean + standard deviation of those candidates' IoUs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.assigners.matched import BACKGROUND
from models.boxes import iou
from models.points import Priors


@torch.no_grad()
def assign_atss(priors: Priors, gt_boxes_xyxy: Tensor, gt_valid: Tensor, topk: int = 9) -> Tensor:
    """Matched box index per prior, [B, N] int64, for boxes [B, G, 4] with validity [B, G].

    IoU is computed for candidates only, at most `topk * L` per object, so the largest tensor is one level's
    distances [B, G, n].
    """
    B, G = gt_valid.shape
    N = len(priors.boxes_xyxy)
    matched = gt_valid.new_full((B, N), BACKGROUND, dtype=torch.int64)
    if G == 0:
        return matched

    # Lines 3-6: on each level, the `topk` priors whose centres are nearest to the object's.
    points = priors.points  # [N, 2]
    gt_centres = (gt_boxes_xyxy[..., :2] + gt_boxes_xyxy[..., 2:]) / 2  # [B, G, 2]
    candidates, start = [], 0
    for size in priors.level_sizes:
        level = points[start : start + size]
        squared = (gt_centres[..., None, 0] - level[:, 0]) ** 2 + (gt_centres[..., None, 1] - level[:, 1]) ** 2
        candidates.append(squared.topk(min(topk, size), dim=-1, largest=False).indices + start)
        start += size
    index = torch.cat(candidates, dim=-1)  # [B, G, M], M = candidates of an object

    # Lines 7-10: the threshold adapts to each object. The paper's "standard deviation" is the unbiased one
    # in its authors' code.
    overlaps = iou(gt_boxes_xyxy[:, :, None], priors.boxes_xyxy[index])  # [B, G, M]
    threshold = overlaps.mean(dim=-1, keepdim=True)
    if index.shape[-1] > 1:
        threshold = threshold + overlaps.std(dim=-1, keepdim=True)

    # Lines 11-15: positives reach the threshold with their centre inside the object (by 0.01 px, as in the
    # authors' code, so that a centre on the border has a centerness).
    candidate_points = points[index]  # [B, G, M, 2]
    inside = torch.cat(
        [candidate_points - gt_boxes_xyxy[:, :, None, :2], gt_boxes_xyxy[:, :, None, 2:] - candidate_points], dim=-1
    )
    positive = (overlaps >= threshold) & (inside.amin(dim=-1) > 0.01) & gt_valid[..., None]

    # A prior that several objects want goes to the one it overlaps most; of equals, to the first.
    flat = index.flatten(1)  # [B, G*M]
    overlaps = overlaps.masked_fill(~positive, -1).flatten(1)
    best = overlaps.new_full((B, N), -1).scatter_reduce(1, flat, overlaps, "amax")
    winner = positive.flatten(1) & (overlaps == best.gather(1, flat))
    owner = torch.arange(G, device=flat.device)[:, None].expand(G, index.shape[-1]).reshape(1, -1).expand(B, -1)
    first = matched.new_full((B, N), G).scatter_reduce(1, flat, owner.masked_fill(~winner, G), "amin")
    return torch.where(first < G, first, matched)
