"""FCOS: Tian et al., "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019, section 3.1-3.2,
with center sampling from its authors' improved version (TPAMI 2020, section 3).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from models.assigners.assignment import BACKGROUND
from models.boxes import box_area
from models.priors import Priors


@torch.no_grad()
def assign_center(
    priors: Priors,
    gt_boxes_xyxy: Tensor,
    gt_valid: Tensor,
    radius: float = 1.5,
    range_factor: float = 8.0,
    range_ends: Literal["inclusive", "strict"] = "inclusive",
    available: Tensor | None = None,
) -> Tensor:
    """Matched box index per prior, [B, N] int64, for boxes [B, G, 4] with validity [B, G].

    radius: half the side, in strides, of the square around an object's center whose points are positive, clipped to the
    object; 0: the whole object. range_factor f: a level of stride s takes objects whose farthest side is f*s/2..f*s
    pixels away (f = 8 gives the paper's 64, 128, 256, 512); the first level takes everything smaller too, the last
    everything larger. range_ends: whether both ends of that range belong to it (inclusive) or neither (strict).
    available: which priors can be samples, bool [B, N]; None: all.
    """
    B, G = gt_valid.shape
    N = len(priors.boxes_xyxy)
    if G == 0:
        return gt_valid.new_full((B, N), BACKGROUND, dtype=torch.int64)
    x, y = priors.points.unbind(-1)  # [N]
    x1, y1, x2, y2 = gt_boxes_xyxy[..., None].unbind(-2)  # [B, G, 1]

    # A point is a sample of an object if it lies strictly inside the object, or inside the square at its center.
    reach = radius * priors.strides if radius > 0 else torch.full_like(priors.strides, torch.inf)  # [N]
    cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
    inside = (
        (x > torch.maximum(x1, cx - reach))
        & (x < torch.minimum(x2, cx + reach))
        & (y > torch.maximum(y1, cy - reach))
        & (y < torch.minimum(y2, cy + reach))
    )

    # Each level is responsible for a range of sizes.
    farthest = torch.maximum(torch.maximum(x - x1, x2 - x), torch.maximum(y - y1, y2 - y))  # [B, G, N]
    low, high = range_factor * priors.strides / 2, range_factor * priors.strides
    first, last = priors.level_sizes[0], priors.level_sizes[-1]
    low[:first], high[N - last :] = 0, torch.inf
    after, before = (torch.gt, torch.lt) if range_ends == "strict" else (torch.ge, torch.le)
    sample = inside & after(farthest, low) & before(farthest, high) & gt_valid[..., None]
    if available is not None:
        sample &= available[:, None]

    # An ambiguous point takes the smallest object; of equals, the first.
    area = box_area(gt_boxes_xyxy)[..., None].expand(-1, -1, N).masked_fill(~sample, torch.inf)
    smallest, index = area.min(dim=1)  # [B, N]
    return torch.where(smallest.isfinite(), index, BACKGROUND)
