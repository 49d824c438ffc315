"""Calling a custom assigner or loss in a training step, and checking its result before it is used.

Shapes and dtypes are checked at every call, which costs nothing. Matched indices are checked too: an index of padding
would silently teach the last class.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isodet.strict import ConfigError
from models.config.model import AssignConfig, BoxConfig, LossConfig
from models.custom.find import ASSIGNER, BOX_LOSS, CLASS_LOSS, CustomPart, custom_part
from models.priors import Priors


def custom_matches(config: AssignConfig, priors: Priors, gt_boxes_xyxy: Tensor, gt_valid: Tensor) -> Tensor:
    """Matched box index per prior, [B, N] int64, by the custom assigner `config.kind`; see `models.assigners`."""
    part = custom_part(ASSIGNER, config.kind, config.arguments)
    shape = (len(gt_valid), len(priors.boxes_xyxy))
    with torch.no_grad():
        matched = _called(part, (priors, gt_boxes_xyxy, gt_valid), shape, torch.int64,
                          "[B, N] int64, for each prior an object's index, -1 or -2")  # fmt: skip
    objects = gt_valid.shape[1]
    valid = (matched >= -2) & (matched < objects)
    if objects:
        valid = valid & ((matched < 0) | gt_valid.gather(1, matched.clamp(0, objects - 1)))
    if not valid.all():
        image, prior = (int(v) for v in (~valid).nonzero()[0])
        raise ConfigError(
            f"{part.where}: expected -1 (background), -2 (ignored) or the index of a valid one of {objects} boxes; got "
            f"{int(matched[image, prior])} at prior {prior} of image {image}"
        )
    return matched


def custom_box_loss(config: BoxConfig, pred_xyxy: Tensor, target_xyxy: Tensor) -> Tensor:
    """Losses [P] of decoded boxes [P, 4] against [P, 4] by the custom loss `config.loss`."""
    part, shape = custom_part(BOX_LOSS, config.loss, config.arguments), (len(pred_xyxy),)
    return _called(part, (pred_xyxy, target_xyxy), shape, torch.float32, "[P] float32, one loss for each pair of boxes")


def custom_class_loss(config: LossConfig, logits: Tensor, targets: Tensor) -> Tensor:
    """Losses [B, N, C] of logits [B, N, C] against 0/1 targets [B, N, C] by the custom loss `config.cls`."""
    part, shape = custom_part(CLASS_LOSS, config.cls, config.arguments), tuple(logits.shape)
    return _called(part, (logits, targets), shape, torch.float32, "[B, N, C] float32, a loss for each element")


def _called(
    part: CustomPart, inputs: tuple[object, ...], shape: tuple[int, ...], dtype: torch.dtype, form: str
) -> Tensor:
    result = part(*inputs)
    if not isinstance(result, Tensor):
        raise ConfigError(f"{part.where}: expected {form}, here {list(shape)}; got {type(result).__name__}")
    if tuple(result.shape) != shape or result.dtype != dtype:
        got = f"{list(result.shape)} {str(result.dtype).removeprefix('torch.')}"
        raise ConfigError(f"{part.where}: expected {form}, here {list(shape)}; got {got}")
    return result
