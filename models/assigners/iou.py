"""RetinaNet's assignment by IoU: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, section 4;
the rescue of unmatched objects is Faster R-CNN's (Ren et al., 2015, section 3.1.2, rule i).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from models.assigners.assignment import BACKGROUND, IGNORED
from models.boxes import iou
from models.priors import Priors


@torch.no_grad()
def assign_iou(
    priors: Priors,
    gt_boxes_xyxy: Tensor,
    gt_valid: Tensor,
    pos_iou: float = 0.5,
    neg_iou: float = 0.4,
    rescue: Literal["overwrite", "restore"] = "overwrite",
    available: Tensor | None = None,
) -> Tensor:
    """Matched box index per prior, [B, N] int64, for boxes [B, G, 4] with validity [B, G].

    An anchor whose best IoU is at least `pos_iou` takes that object, one below `neg_iou` is background, and one between
    is ignored. Rescue: the anchors with the highest IoU of each object are positives too, however low that is above 0.
    rescue overwrite gives them to that object, restore to the object that they overlap most themselves.
    available: which priors can be matched, bool [B, N]; None: all.
    """
    B, G = gt_valid.shape
    matched = gt_valid.new_full((B, len(priors.boxes_xyxy)), BACKGROUND, dtype=torch.int64)
    # One image at a time: anchors x boxes of a whole batch is gigabytes on real images (201,600 anchors at 800 x 1333),
    # and a single image already keeps the device busy.
    for i, (row, boxes, valid) in enumerate(zip(matched, gt_boxes_xyxy, gt_valid, strict=True)):
        if G == 0 or not valid.any():
            continue
        overlaps = iou(boxes[:, None], priors.boxes_xyxy).masked_fill(~valid[:, None], -1)  # [G, N]
        if available is not None:
            overlaps = overlaps.masked_fill(~available[i], -1)
        best, best_gt = overlaps.max(dim=0)
        row[best >= neg_iou] = IGNORED
        row[best >= pos_iou] = best_gt[best >= pos_iou]
        # Rescue. Anchors that tie for an object's highest IoU all take it. Of objects with the same best anchor the
        # last gets it, as in mmdetection. An object that overlaps no anchor rescues none.
        best_of_gt = overlaps.amax(dim=1, keepdim=True)  # [G, 1]
        rescued = (overlaps == best_of_gt) & (best_of_gt > 0)
        order = torch.arange(1, G + 1, device=row.device)[:, None]
        last = (rescued * order).amax(dim=0) - 1  # [N], -1 where nothing is rescued
        row[last >= 0] = (last if rescue == "overwrite" else best_gt)[last >= 0]
    return matched
