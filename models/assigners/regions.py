"""Ignore regions: boxes that are neither an object nor background, such as a crowd that nobody counted."""

from __future__ import annotations

import torch
from torch import Tensor

from models.boxes import box_area, intersection
from models.priors import Priors


@torch.no_grad()
def in_regions(priors: Priors, boxes_xyxy: Tensor, regions: Tensor, iof: float, by_points: bool) -> Tensor:
    """Which priors lie in a region, bool [B, N]; of boxes [B, G, 4] those are regions that `regions` [B, G] names.

    An anchor does when more than `iof` of its own area is in one of them (mmdetection's rule, intersection over
    foreground). by_points: a prior does when its center is in one, because a point has no area: where detectors of
    points look is not a box of the anchor's size.
    """
    inside = regions.new_zeros(len(regions), len(priors.boxes_xyxy))
    area = box_area(priors.boxes_xyxy).clamp(min=1e-6)
    # One image at a time: few have regions, and anchors x boxes of a whole batch is gigabytes.
    for row, boxes, mine in zip(inside, boxes_xyxy, regions, strict=True):
        if not mine.any():
            continue
        found = boxes[mine][:, None]  # [R, 1, 4]
        if by_points:
            near, far = priors.points - found[..., :2], found[..., 2:] - priors.points
            row |= (torch.minimum(near, far).amin(dim=-1) > 0).any(dim=0)
        else:
            row |= (intersection(priors.boxes_xyxy, found) / area > iof).any(dim=0)
    return inside
