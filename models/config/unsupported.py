"""Features of other toolkits that isodet does not deploy: why not, and what to set instead.

They are refused when the configuration is read. Otherwise a user would find out at export, after the training.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isodet.strict import ConfigError

ANYTHING = r"^(?!False$|None$)"
"""Pattern for a key that isodet does not have: matches every value but False and None."""


@dataclass(frozen=True)
class Refusal:
    """A feature that is refused, under every key that may ask for it.

    keys: dotted keys of the model's mapping, each with the pattern of the values that are refused, in any case.
    """

    feature: str
    keys: Mapping[str, str]
    why: str
    instead: str


def _set_on(*keys: str) -> dict[str, str]:
    """`Refusal.keys` for each of `keys` of backbone, neck and head, whatever it is set to."""
    return {f"{part}.{key}": ANYTHING for part in ("backbone", "neck", "head") for key in keys}


REFUSED = (
    Refusal(
        "deformable convolution (DCN)",
        {key: r"dcn|deform|internimage" for key in ("head.block", "neck.kind", "backbone.name")}
        | _set_on("dcn", "use_dcn", "dcn_on_last_conv", "stage_with_dcn", "deform", "deformable", "use_deform"),
        "reads where the picture sends it: slow, no INT8 in TensorRT, and no operator at all before ONNX opset 19",
        "head.block: conv or repconv, neck.kind: reppan, or a deeper backbone.name",
    ),
    Refusal(
        "content-aware upsampling (CARAFE)",
        {key: r"carafe|dysample" for key in ("neck.kind", "neck.upsample", "neck.upsample_cfg")},
        "weighs the neighbors of every pixel by the picture: in no ONNX opset, so a plugin for each engine",
        "neck.kind: fpn, pafpn, bifpn or reppan, which upsample by the nearest pixel, and leave upsample out",
    ),
    Refusal(
        "NAS-FPN",
        {"neck.kind": r"nas_?-?fpn"},
        "is not here, but BiFPN is, its plainer successor with several passes over all levels too",
        "neck.kind: bifpn with neck.depth: 3",
    ),
    Refusal(
        "a convolution whose kernel comes from the picture",
        {"head.block": r"involution|dynamic|cond_?conv|od_?conv"},
        "has no constant weights, so nothing folds and nothing is quantized ahead of time",
        "head.block: dw or shuffle where it is speed that you want, repconv where it is accuracy",
    ),
    Refusal(
        "a norm with statistics of the picture",
        {"head.norm": r"^ln|layer|^in|instance"},
        "computes them anew at inference and folds into nothing; of its kind only gn is here, which old heads have",
        "head.norm: bn or sepbn, which fold",
    ),
    Refusal(
        "another activation",
        _set_on("act", "act_cfg", "act_layer", "activation"),
        "is not here: every engine fuses ReLU into the convolution before it, in INT8 too",
        "nothing, which is ReLU; mobilenet_v3_large and networks of timm keep the activations that they have",
    ),
    Refusal(
        "an attention backbone",
        {"backbone.name": r"swin|vit|^pvt|deit|mit_b|dino|beit|cait|xcit|segformer|focalnet"},
        "is not here: those need one picture size throughout or give channels last, and none folds",
        "backbone.name: resnext101_32x8d, or of timm's convolutional networks timm:convnext_tiny",
    ),
    Refusal(
        "a backbone that only timm has",
        {
            "backbone.name": r"efficientnet(?!_lite[012]$)|effnet|convnext|regnet|hrnet|res2net|resnest"
            r"|res[a-z]*2?net_?\d+_?(d|vd)$|ghostnet|densenet|dla\d|darknet|^vgg|seresn|nfnet|mobilenet_?v?4|edgenext|mobileone|fasternet"
        },
        "deploys but is not isodet's own",
        "backbone.name: timm:NAME with timm's name for it (pip install 'isodet[timm]'), or efficientnet_lite0",
    ),
    Refusal(
        "an input of any size",
        {"input_size_hw": r"none|null|dynamic|auto|any|-\d"},
        "makes points, top-k and every buffer of an engine depend on the picture",
        "one size, as input_size_hw: [640, 640]: pictures of every shape are letterboxed into it, the number of "
        "pictures in a batch stays free, and a second size is a second export",
    ),
    Refusal(
        "Soft-NMS",
        {f"postprocess.{key}": r"soft" for key in ("nms", "nms_cfg", "nms_type", "nms_kind")}
        | {f"postprocess.{key}": ANYTHING for key in ("soft_nms", "nms_sigma")},
        "lowers scores one box after the other, a loop as long as the picture has boxes, and is in no engine's NMS",
        "postprocess.nms_iou, higher for crowds: the NMS of the graph is greedy and class-aware",
    ),
    Refusal(
        "a detector in two stages",
        {"detector": r"rcnn|r-cnn|rpn|roi|cascade|htc"},
        "cuts features out (RoIAlign) for a number of proposals that depends on the picture",
        "detector: atss, retinanet or fcos",
    ),
    Refusal(
        "a detector of queries",
        {"detector": r"detr|dino|sparse"},
        "is not here: its decoder samples features where the picture sends it",
        "detector: atss, retinanet or fcos",
    ),
)


def refuse_undeployable(model: Mapping[str, Any], path: str) -> None:
    """Raise `ConfigError` for the first value in `model`, as YAML gives it, that asks for something in `REFUSED`."""
    for refusal in REFUSED:
        for key, pattern in refusal.keys.items():
            for value in _values(model, key.split(".")):
                # timm:NAME and package.module:Name are not isodet's own parts, so not refused by name.
                external = isinstance(value, str) and ":" in value
                if not external and re.search(pattern, str(value), re.IGNORECASE):
                    reason = f"{value!r} asks for {refusal.feature}, which {refusal.why}; use {refusal.instead}"
                    raise ConfigError.of(f"{path}.{key}", reason)


def _values(mapping: Any, keys: list[str]) -> list[Any]:
    """The value under the nested `keys`, in a list; an empty list where there is none."""
    for key in keys:
        if not isinstance(mapping, Mapping) or key not in mapping:
            return []
        mapping = mapping[key]
    return [mapping]
