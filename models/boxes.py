"""Areas and overlaps of boxes, float32 pixels xyxy."""

from __future__ import annotations

from torch import Tensor


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """Areas [...] of boxes [..., 4]; negative sides count as zero."""
    return (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0).prod(dim=-1)


def intersection(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Area of overlap [...] of boxes that broadcast against each other, [..., 4] each."""
    # Each coordinate by itself, so that no temporary is larger than the result.
    width = (a_xyxy[..., 2].minimum(b_xyxy[..., 2]) - a_xyxy[..., 0].maximum(b_xyxy[..., 0])).clamp(min=0)
    height = (a_xyxy[..., 3].minimum(b_xyxy[..., 3]) - a_xyxy[..., 1].maximum(b_xyxy[..., 1])).clamp(min=0)
    return width * height


def iou(a_xyxy: Tensor, b_xyxy: Tensor, eps: float = 1e-6) -> Tensor:
    """Intersection over union [...] of boxes that broadcast, the union at least `eps` square pixels."""
    overlap = intersection(a_xyxy, b_xyxy)
    return overlap / (box_area(a_xyxy) + box_area(b_xyxy) - overlap).clamp(min=eps)
