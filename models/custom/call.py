"""A user's own assigner and losses in a training step: called, and what they give checked before it is used.

Shapes are compared at every call, which costs nothing. Matched indices are looked at too: one that names padding
would teach the last class without a word.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isodet.strict import ConfigError
from models.config.model import AssignConfig, BoxConfig, LossConfig
from models.custom.find import ASSIGNER, BOX_LOSS, CLASS_LOSS, CustomPart, custom_part
from models.priors import Priors


def custom_matches(config: AssignConfig, priors: Priors, gt_boxes_xyxy: Tensor, gt_valid: Tensor) -> Tensor:
    """Matched box index per prior, [B, N] int64, by the assigner `config.kind`; see `models.assigners`."""
    part = custom_part(ASSIGNER, config.kind, config.arguments)
    shape = (len(gt_valid), len(priors.boxes_xyxy))
    with torch.no_grad():
        matched = _called(part, (priors, gt_boxes_xyxy, gt_valid), shape, torch.int64,
                          "[B, N] int64, for each prior an object's index, -1 or -2")  # fmt: skip
    objects = gt_valid.shape[1]
    fine = (matched >= -2) & (matched < objects)
    if objects:
        fine = fine & ((matched < 0) | gt_valid.gather(1, matched.clamp(0, objects - 1)))
    if not fine.all():
        image, prior = (int(v) for v in (~fine).nonzero()[0])
        raise ConfigError(
            f"{part.where}: expected -1 (background), -2 (ignored) or the index of a valid one of {objects} boxes; got "
            f"{int(matched[image, prior])} at prior {prior} of image {image}"
        )
    return matched


def custom_box_loss(config: BoxConfig, pred_xyxy: Tensor, target_xyxy: Tensor) -> Tensor:
    """Losses [P] of decoded boxes [P, 4] against [P, 4] by the loss `config.loss`."""
    part, shape = custom_part(BOX_LOSS, config.loss, config.arguments), (len(pred_xyxy),)
    return _called(part, (pred_xyxy, target_xyxy), shape, torch.float32, "[P] float32, one loss for each pair of boxes")


def custom_class_loss(config: LossConfig, logits: Tensor, targets: Tensor) -> Tensor:
    """Losses [B, N, C] of logits [B, N, C] against 0/1 targets [B, N, C] by the loss `config.cls`."""
    part, shape = custom_part(CLASS_LOSS, config.cls, config.arguments), tuple(logits.shape)
    return _called(part, (logits, targets), shape, torch.float32, "[B, N, C] float32, a loss for each element")


def _called(
    part: CustomPart, given: tuple[object, ...], shape: tuple[int, ...], dtype: torch.dtype, form: str
) -> Tensor:
    result = part(*given)
    if not isinstance(result, Tensor):
        raise ConfigError(f"{part.where}: expected {form}, here {list(shape)}; got {type(result).__name__}")
    if tuple(result.shape) != shape or result.dtype != dtype:
        got = f"{list(result.shape)} {str(result.dtype).removeprefix('torch.')}"
        raise ConfigError(f"{part.where}: expected {form}, here {list(shape)}; got {got}")
    return result
