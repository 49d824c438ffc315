"""Which priors answer for which object: one file each, the story in the order of its paper.

Every assigner takes `Priors` of N, boxes `[B, G, 4]` float32 xyxy and their validity `[B, G]` bool (images
have different numbers of boxes; the rest is padding), and returns `[B, N]` int64: the index of the
matched box, or `BACKGROUND`, or `IGNORED` (no classification loss).
"""

from __future__ import annotations

from torch import Tensor

from models.assigners.atss import assign_atss
from models.assigners.center import assign_center
from models.assigners.iou import assign_iou
from models.assigners.matched import BACKGROUND, IGNORED
from models.assigners.topk import assign_topk
from models.config import AssignConfig
from models.network_config import is_own
from models.own_calls import own_matches
from models.points import Priors

__all__ = ["BACKGROUND", "IGNORED", "assign", "assign_atss", "assign_center", "assign_iou", "assign_topk"]


def assign(config: AssignConfig, priors: Priors, gt_boxes_xyxy: Tensor, gt_valid: Tensor) -> Tensor:
    """Matched box index per prior, [B, N] int64, by the assigner that `config.kind` names."""
    if is_own(config.kind):
        return own_matches(config, priors, gt_boxes_xyxy, gt_valid)
    if config.kind == "atss":
        return assign_atss(priors, gt_boxes_xyxy, gt_valid, config.topk)
    if config.kind == "topk":
        return assign_topk(priors, gt_boxes_xyxy, gt_valid, config.topk)
    if config.kind == "iou":
        return assign_iou(priors, gt_boxes_xyxy, gt_valid, config.pos_iou, config.neg_iou, config.rescue)
    return assign_center(priors, gt_boxes_xyxy, gt_valid, config.radius, config.range_factor, config.range_ends)
