"""Ignore regions: boxes that are neither an object nor background, such as a crowd without boxes of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from models.boxes import box_area, intersection
from models.priors import Priors


@torch.no_grad()
def in_regions(priors: Priors, boxes_xyxy: Tensor, regions: Tensor, iof: float, by_points: bool) -> Tensor:
    """Which priors lie in an ignore region, bool [B, N]. regions: bool [B, G], which of boxes [B, G, 4] are regions.

    An anchor lies in a region if more than `iof` of its own area does (mmdetection's rule, intersection over
    foreground).
    by_points: a prior lies in a region if its center does, for detectors whose priors are points without a size.
    """
    inside = regions.new_zeros(len(regions), len(priors.boxes_xyxy))
    area = box_area(priors.boxes_xyxy).clamp(min=1e-6)
    # One image at a time: few have regions, and anchors x boxes of a whole batch is gigabytes.
    for row, boxes, is_region in zip(inside, boxes_xyxy, regions, strict=True):
        if not is_region.any():
            continue
        region = boxes[is_region][:, None]  # [R, 1, 4]
        if by_points:
            near, far = priors.points - region[..., :2], region[..., 2:] - priors.points
            row |= (torch.minimum(near, far).amin(dim=-1) > 0).any(dim=0)
        else:
            row |= (intersection(priors.boxes_xyxy, region) / area > iof).any(dim=0)
    return inside
