"""What ATSS and its ablation share: the priors nearest to an object, and the owner of a prior that several claim."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from models.assigners.assignment import BACKGROUND
from models.priors import Priors


def nearest(priors: Priors, gt_boxes_xyxy: Tensor, k: int, available: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The `k` priors of every level whose centers are nearest to the center of a box [B, G, 4].

    Gives their indices [B, G, M] int64, and which of them are candidates, bool [B, G, M]. A level with fewer than `k`
    priors gives all of them. Ties are broken in any way. available: bool [B, N], the priors to choose from; a level
    that has fewer than `k` of them is filled up with priors that are no candidates.

    On a grid the k nearest points lie in the k nearest columns: a point in a farther column has k points in its own row
    that are not farther. The same holds for rows, so k * k cells are compared instead of the whole level. This is exact
    in floating point too, because squaring and adding keep the order.
    """
    if available is None and not priors.level_shapes:
        available = torch.ones(len(gt_boxes_xyxy), len(priors.points), dtype=torch.bool, device=gt_boxes_xyxy.device)
    if available is not None:  # no whole grid: compare all priors, one image at a time
        images = zip(gt_boxes_xyxy, available, strict=True)
        index = torch.stack([_nearest_in_image(priors, boxes, k, mask) for boxes, mask in images])
        return index, available[:, None].expand(-1, index.shape[1], -1).gather(-1, index)
    centers = (gt_boxes_xyxy[..., :2] + gt_boxes_xyxy[..., 2:]) / 2  # [B, G, 2]
    points, indices, start = priors.points, [], 0
    for level, size in enumerate(priors.level_sizes):
        h, w, anchors = priors.level_shapes[level]
        cells = points[start : start + size].view(h, w, anchors, 2)
        dx, column = _nearest_lines(centers[..., 0], cells[0, :, 0, 0], k)  # [B, G, <= k]
        dy, row = _nearest_lines(centers[..., 1], cells[:, 0, 0, 1], k)
        squared = (dx[..., None, :] + dy[..., :, None]).flatten(-2)  # [B, G, <= k * k]
        index = (column[..., None, :] + w * row[..., :, None]).flatten(-2)
        if anchors > 1:
            squared = squared.repeat_interleave(anchors, dim=-1)
            index = (index[..., None] * anchors + torch.arange(anchors, device=index.device)).flatten(-2)
        indices.append(index.gather(-1, _k_smallest(squared, min(k, size)).indices) + start)
        start += size
    index = torch.cat(indices, dim=-1)
    return index, torch.ones_like(index, dtype=torch.bool)


def _nearest_in_image(priors: Priors, boxes_xyxy: Tensor, k: int, available: Tensor) -> Tensor:
    """Indices [G, M] int64 of `nearest` for the boxes [G, 4] of one image; available priors, bool [N], come first."""
    centers = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    squared = (centers[:, :1] - priors.points[:, 0]) ** 2 + (centers[:, 1:] - priors.points[:, 1]) ** 2  # [G, N]
    levels = squared.masked_fill(~available, torch.inf).split(priors.level_sizes, dim=1)
    starts = itertools.accumulate(priors.level_sizes, initial=0)
    return torch.cat(
        [_k_smallest(level, k).indices + start for level, start in zip(levels, starts, strict=False)], dim=1
    )


def _nearest_lines(centers: Tensor, lines: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k of n rows or columns nearest to coordinates [B, G]: squared distances and indices [B, G, k]."""
    return _k_smallest((centers[..., None] - lines) ** 2, k)


def _k_smallest(distances: Tensor, k: int) -> torch.return_types.topk:
    return distances.topk(min(k, distances.shape[-1]), dim=-1, largest=False, sorted=False)


def inside(points_xy: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """Which points [..., 2] lie in their boxes [..., 4], by more than 0.01 px on every side, bool [...].

    The margin is that of the ATSS authors' code: a point on the border has centerness 0.
    """
    near, far = points_xy - boxes_xyxy[..., :2], boxes_xyxy[..., 2:] - points_xy
    return torch.minimum(near, far).amin(dim=-1) > 0.01


def best_owner(index: Tensor, claimed: Tensor, overlaps: Tensor, count: int) -> Tensor:
    """Matched box index per prior, [B, N] int64, N = `count`.

    index: [B, G, M], the candidates of each box, of which it claims those that are True in `claimed` [B, G, M]. A prior
    that several boxes claim goes to the one with the largest of `overlaps` [B, G, M]; of equal ones, to the first.
    """
    B, G, M = index.shape
    flat = index.flatten(1)  # [B, G*M]
    overlaps = overlaps.masked_fill(~claimed, -1).flatten(1)
    best = overlaps.new_full((B, count), -1).scatter_reduce(1, flat, overlaps, "amax")
    winner = claimed.flatten(1) & (overlaps == best.gather(1, flat))
    owner = torch.arange(G, device=index.device)[:, None].expand(G, M).reshape(1, -1).expand(B, -1)
    first = index.new_full((B, count), G).scatter_reduce(1, flat, owner.masked_fill(~winner, G), "amin")
    return first.masked_fill(first == G, BACKGROUND)
