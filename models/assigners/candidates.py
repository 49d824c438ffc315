"""What ATSS and its ablation share: the priors nearest to an object, and who gets a prior that several want."""

from __future__ import annotations

import torch
from torch import Tensor

from models.assigners.assignment import BACKGROUND
from models.priors import Priors


def nearest(priors: Priors, gt_boxes_xyxy: Tensor, k: int, available: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Indices [B, G, M] int64 of the `k` priors of every level whose centers are nearest to a box's, [B, G, 4], and
    which of them are candidates, bool [B, G, M].

    A level with fewer than `k` priors gives all it has. Of equally near priors any may be taken. available: bool
    [B, N], the priors to choose from; where a level has fewer than `k` of them, the rest are no candidates.

    On a grid the k nearest points lie in the k nearest columns: a point in a farther column has k points that
    are no farther in its own row. The same holds for rows, so k * k cells are compared in place of the whole
    level. This is exact in floating point too, because squaring and adding keep the order.
    """
    if available is None and not priors.level_shapes:
        available = torch.ones(len(gt_boxes_xyxy), len(priors.points), dtype=torch.bool, device=gt_boxes_xyxy.device)
    if available is not None:  # rows and columns with gaps say nothing: every prior, one image at a time
        images = [_nearest_of(priors, boxes, k, some) for boxes, some in zip(gt_boxes_xyxy, available, strict=True)]
        index = torch.stack(images)
        return index, available[:, None].expand(-1, index.shape[1], -1).gather(-1, index)
    centers = (gt_boxes_xyxy[..., :2] + gt_boxes_xyxy[..., 2:]) / 2  # [B, G, 2]
    points, found, start = priors.points, [], 0
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
        near = squared.topk(min(k, size), dim=-1, largest=False, sorted=False).indices
        found.append(index.gather(-1, near) + start)
        start += size
    index = torch.cat(found, dim=-1)
    return index, torch.ones_like(index, dtype=torch.bool)


def _nearest_of(priors: Priors, boxes_xyxy: Tensor, k: int, available: Tensor) -> Tensor:
    """Indices [G, M] int64 as `nearest` gives them, for the boxes [G, 4] of one image; available first, bool [N]."""
    centers = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    squared = (centers[:, :1] - priors.points[:, 0]) ** 2 + (centers[:, 1:] - priors.points[:, 1]) ** 2  # [G, N]
    levels = squared.masked_fill(~available, torch.inf).split(priors.level_sizes, dim=1)
    found, start = [], 0
    for level in levels:
        found.append(level.topk(min(k, level.shape[1]), dim=1, largest=False, sorted=False).indices + start)
        start += level.shape[1]
    return torch.cat(found, dim=1)


def _nearest_lines(centers: Tensor, lines: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k of n rows or columns nearest to coordinates [B, G]: squared distances and indices [B, G, k]."""
    squared = (centers[..., None] - lines) ** 2
    near = squared.topk(min(k, len(lines)), dim=-1, largest=False, sorted=False)
    return near.values, near.indices


def inside(points_xy: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """Which points [..., 2] lie in their boxes [..., 4], by more than 0.01 px on every side, bool [...].

    The margin is the one of ATSS' authors' code: a point on the border would have no centerness.
    """
    near, far = points_xy - boxes_xyxy[..., :2], boxes_xyxy[..., 2:] - points_xy
    return torch.minimum(near, far).amin(dim=-1) > 0.01


def best_owner(index: Tensor, wanted: Tensor, overlaps: Tensor, count: int) -> Tensor:
    """Matched box index per prior, [B, N] int64, N = `count`, where boxes want (`wanted`) priors `index` [B, G, M].

    A prior that several objects want goes to the one it overlaps most (`overlaps` [B, G, M]); of equals, to the
    first.
    """
    B, G, M = index.shape
    flat = index.flatten(1)  # [B, G*M]
    overlaps = overlaps.masked_fill(~wanted, -1).flatten(1)
    best = overlaps.new_full((B, count), -1).scatter_reduce(1, flat, overlaps, "amax")
    winner = wanted.flatten(1) & (overlaps == best.gather(1, flat))
    owner = torch.arange(G, device=index.device)[:, None].expand(G, M).reshape(1, -1).expand(B, -1)
    first = index.new_full((B, count), G).scatter_reduce(1, flat, owner.masked_fill(~winner, G), "amin")
    return first.masked_fill(first == G, BACKGROUND)
