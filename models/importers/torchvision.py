"""torchvision's `retinanet_resnet50_fpn`, its `_v2`, and `fcos_resnet50_fpn`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from isodet.strict import merge
from models.importers.resnet import backbone_of
from models.importers.weights import Converted, ImportRefused, neck_and_head
from models.tensor_files import sha256_starts

NAMES = ("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn")
_V1_COCO = "eeacb38b"  # how the sha256 of retinanet_resnet50_fpn_coco-eeacb38b.pth begins
_PREDICTIONS = {"cls_logits": "cls", "bbox_reg": "box", "bbox_ctrness": "quality"}


def recognizes(state: Mapping[str, Tensor]) -> bool:
    """Whether these are a detector's weights under torchvision's names, imported or not."""
    return any(key.startswith("backbone.body.") for key in state)


def convert(path: str | Path, state: Mapping[str, Tensor], norm_eps: float | None = None) -> Converted:
    """A torchvision state dict as isodet's. Raises `ImportRefused`.

    norm_eps: epsilon of the backbone's BatchNorms, which is not in the weights. None: 1e-5, but 0 for torchvision's own
    COCO file of RetinaNet v1, for which torchvision sets it so.
    """
    if any(key.startswith(("roi_heads.", "rpn.")) for key in state):
        raise ImportRefused(
            "it is a two-stage detector of torchvision (R-CNN); the nearest that isodet has is "
            "retinanet_resnet50_fpn_v2"
        )
    fcos = "head.regression_head.bbox_ctrness.weight" in state
    moved = {renamed(key, fcos): value for key, value in state.items()}
    if not {"head.box.weight", "neck.laterals.0.conv.weight", "head.cls.weight"} <= moved.keys():
        held = ", ".join(list(state)[-2:])
        raise ImportRefused(
            f"it is torchvision's, but no dense detector with a pyramid (it holds {held}); imported are "
            f"{', '.join(NAMES)}"
        )
    norm = any(key.startswith("head.cls_tower.0.norm.") for key in moved)
    name = NAMES[2] if fcos else NAMES[1] if norm else NAMES[0]
    if norm_eps is None and name == NAMES[0] and sha256_starts(path, _V1_COCO):
        norm_eps = 0.0
    backbone = {**backbone_of(state, "backbone.body."), "norm_eps": norm_eps}
    return Converted(name, moved, merge(conventions(name), {"backbone": backbone, **neck_and_head(moved)}))


def conventions(architecture: str) -> dict[str, Any]:
    """The settings of one of `NAMES` that are not in its weights, for `models.config.model.model_config`."""
    model: dict[str, Any] = {
        "backbone": {"norm": "frozen"},
        "neck": {"p7_relu": True},
        "assign": {"ignore_iof": None},
        "head": {"norm": "none", "level_scales": False},
        "anchors": {"offset": 0.0, "stride_rule": "padded_over_grid", "whole_pixels": True},
        "resize": {"rule": "short-side", "short": 800, "long": 1333, "rounding": "floor"},
        "postprocess": {"candidates": 2000, "level_candidates": 1000, "empty_boxes": "keep"},
    }
    if architecture == "fcos_resnet50_fpn":
        return merge(
            model,
            {
                "detector": "fcos",
                "head": {"norm": "gn", "conv_bias": True},
                "anchors": {"size": 1.0},
                "assign": {"range_ends": "strict"},
                "box": {"activation": "relu", "unit": "anchor", "weighting": "none"},
                "postprocess": {"score_threshold": 0.2, "nms_iou": 0.6, "detections": 100},
            },
        )
    model |= {"detector": "retinanet", "box": {"clamp": "upper"}, "loss": {"normalizer": "image"}}
    model["assign"]["rescue"] = "restore"
    # NMS of the K best equals NMS of all candidates as long as D of them are left, and 300 is many.
    model["postprocess"] |= {"score_threshold": 0.05, "nms_iou": 0.5, "detections": 300, "candidates": 3840}
    if architecture == "retinanet_resnet50_fpn_v2":
        return merge(model, {"backbone": {"norm": "bn"}, "head": {"norm": "gn"}, "box": {"loss": "giou"}})
    return model


def renamed(key: str, fcos: bool) -> str:
    """A parameter's name in isodet; an unknown name stays as it is."""
    if key.startswith("backbone.body."):
        return "backbone." + key.removeprefix("backbone.body.")
    # In older versions the convolutions of the pyramid and of RetinaNet are direct items of their lists.
    if match := re.fullmatch(r"backbone\.fpn\.(inner|layer)_blocks\.(\d+)\.(?:0\.)?(weight|bias)", key):
        return f"neck.{'laterals' if match[1] == 'inner' else 'outputs'}.{match[2]}.conv.{match[3]}"
    if match := re.fullmatch(r"backbone\.fpn\.extra_blocks\.p([67])\.(weight|bias)", key):
        return f"neck.extra.{int(match[1]) - 6}.conv.{match[2]}"
    if match := re.fullmatch(r"head\.(classification|regression)_head\.conv\.(\d+)\.(?:([01])\.)?(weight|bias)", key):
        tower = "cls_tower" if match[1] == "classification" else "box_tower"
        index, part = int(match[2]), match[3]
        if part is None:  # a flat list: FCOS has convolution, norm, ReLU; old RetinaNet convolution, ReLU
            index, part = divmod(index, 3 if fcos else 2)
        return f"head.{tower}.{index}.{'norm' if int(part) else 'conv'}.{match[4]}"
    if match := re.fullmatch(r"head\.(?:classification|regression)_head\.(\w+)\.(weight|bias)", key):
        return f"head.{_PREDICTIONS.get(match[1], match[1])}.{match[2]}"
    return key
