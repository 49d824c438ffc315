"""Assigners: which priors learn to detect which object. One file each, in the order of the paper's steps.

Every assigner takes N `Priors`, boxes `[B, G, 4]` float32 xyxy and their validity `[B, G]` bool (images have different
numbers of boxes; the rest is padding). It returns `[B, N]` int64: the index of the matched box, `BACKGROUND`, or
`IGNORED` (no classification loss). With `available`, bool `[B, N]`, an assigner matches available priors only; `assign`
marks the others. An assigner that looks at what the network predicts (`AssignerPart.needs_predictions`) also takes
`predictions`.
"""

from __future__ import annotations

import functools

from torch import Tensor

from isodet.shapes import assert_shape
from models.assigners.assignment import BACKGROUND, IGNORED
from models.assigners.regions import in_regions
from models.assigners.tal import Predictions
from models.config.model import AssignConfig
from models.config.network import is_custom
from models.custom.call import custom_matches
from models.priors import Priors

__all__ = ["BACKGROUND", "IGNORED", "assign"]


def assign(
    config: AssignConfig,
    priors: Priors,
    gt_boxes_xyxy: Tensor,
    gt_valid: Tensor,
    gt_ignore: Tensor | None = None,
    sizes_hw: Tensor | None = None,
    predictions: Predictions | None = None,
) -> Tensor:
    """Matched box index per prior, [B, N] int64, by the assigner that `config.kind` names.

    gt_ignore: [B, G] bool, which boxes are ignore regions (`config.ignore_iof`). sizes_hw: [B, 2], the padded size of
    each image in pixels (`config.padding`); None: all images have the size of the batch. predictions: for an assigner
    that needs them; the others are not given any.
    """
    B, G = gt_valid.shape
    assert_shape("gt_boxes_xyxy", gt_boxes_xyxy, B, G, 4)
    if gt_ignore is not None:
        assert_shape("gt_ignore", gt_ignore, B, G)
    if sizes_hw is not None:
        assert_shape("sizes_hw", sizes_hw, B, 2)
    available = regions = None
    if config.padding == "absent" and sizes_hw is not None:
        available = priors.within(sizes_hw)
    if config.ignore_iof is not None and gt_ignore is not None and gt_ignore.any():
        regions = in_regions(priors, gt_boxes_xyxy, gt_ignore, config.ignore_iof, by_points=config.part.of_points)
        if config.ignore_over == "objects":
            available = ~regions if available is None else available & ~regions
    if available is not None and available.all():
        available = None  # assigners are faster on whole grids
    if is_custom(config.kind):
        matched = custom_matches(config, priors, gt_boxes_xyxy, gt_valid)
    else:
        assigner = config.part.configured(config)
        if config.part.needs_predictions:
            assert predictions is not None, f"{config.kind} assigns by predictions"
            assert_shape("predictions.boxes_xyxy", predictions.boxes_xyxy, B, len(priors.boxes_xyxy), 4)
            assert_shape("predictions.gt_labels", predictions.gt_labels, B, G)
            assigner = functools.partial(assigner, predictions=predictions)
        matched = assigner(priors, gt_boxes_xyxy, gt_valid, available=available)
    assert_shape(f"the matches of {config.kind}", matched, B, len(priors.boxes_xyxy))
    if available is not None:
        matched = matched.masked_fill(~available, IGNORED)
    if regions is not None:
        matched = matched.masked_fill((matched == BACKGROUND) & regions, IGNORED)
    return matched
