"""mmdetection's ATSS, FCOS (plain, and improved: center sampling, normalized distances, GIoU) and RetinaNet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from isodet.strict import merge
from models.importers.resnet import backbone_of
from models.importers.weights import Converted, ImportRefused, neck_and_head

NAMES = ("atss", "fcos", "fcos-improved", "retinanet")
Style = Literal["pytorch", "caffe"]
_PREDICTIONS = {
    "atss": ("atss_cls", "atss_reg", "atss_centerness"),
    "fcos": ("conv_cls", "conv_reg", "conv_centerness"),
    "retinanet": ("retina_cls", "retina_reg"),
}
_NEAREST = {"gfl": "atss", "vfnet": "atss", "tood": "atss", "paa": "atss", "ld": "atss", "ddod": "atss",
            "fovea": "fcos", "rpn": "retinanet", "roi": "retinanet", "sabl": "retinanet"}  # fmt: skip


def recognizes(state: Mapping[str, Tensor]) -> bool:
    """Whether these are a detector's weights under mmdetection's names, imported or not."""
    return any(key.startswith(("bbox_head.", "neck.lateral_convs.", "roi_head.")) for key in state)


def convert(
    state: Mapping[str, Tensor], meta: Mapping[str, Any], norm_eps: float | None = None, style: Style | None = None
) -> Converted:
    """An mmdetection state dict as isodet's. Raises `ImportRefused`.

    style: where bottlenecks stride, which also decides the normalization of pixels. It is not in the weights. None: as
    the configuration in `meta` says, else as mmdetection publishes that architecture.
    """
    # mmdetection 2 and 3 rename these by their last part when they load older files.
    state = {re.sub(r"^bbox_head\.fcos_(cls|reg|centerness)\.", r"bbox_head.conv_\1.", k): v for k, v in state.items()}
    kind = _kind(state)
    moved = {renamed(key, kind): value for key, value in state.items()}
    if not {"neck.laterals.0.conv.weight", "head.box.weight"} <= moved.keys():
        raise ImportRefused(
            f"it has the head of {kind} but not its pyramid and box predictions (neck.lateral_convs, "
            f"bbox_head.{_PREDICTIONS[kind][1]})"
        )
    scales = sorted((k for k in moved if k.startswith("bbox_head.scales.")), key=lambda k: int(k.split(".")[2]))
    if scales:
        moved["head.scales"] = torch.stack([moved.pop(key).reshape(()) for key in scales])
    bias, norm = (f"head.cls_tower.0.{part}" in moved for part in ("conv.bias", "norm.weight"))
    architecture = "fcos-improved" if kind == "fcos" and norm and bias else kind
    text = _config_text(meta)
    style, notes = _style(style, text, kind)
    model = merge(conventions(architecture, style), neck_and_head(moved))
    model["backbone"] |= {**backbone_of(state, "backbone."), "norm_eps": norm_eps}
    model["head"] |= {"norm": "gn" if norm else "none", "conv_bias": norm and bias}
    return Converted(architecture, moved, merge(model, {"pixels": _pixels(text), "resize": _resize(text)}), notes)


def conventions(architecture: str, style: Style | None = None) -> dict[str, Any]:
    """The settings of one of `NAMES` that are not in its weights, for `models.config.model.model_config`.

    style: of the backbone, with its normalization of pixels; None: as it is published.
    """
    kind = architecture.partition("-")[0]
    style = style or ("caffe" if kind == "fcos" else "pytorch")
    model: dict[str, Any] = {
        "detector": kind,
        "backbone": {"style": style, "norm": "frozen"},
        "neck": {"p6_from": "c5" if kind == "retinanet" else "p5", "p7_relu": kind == "fcos"},
        "head": {"norm": "none" if kind == "retinanet" else "gn", "level_scales": kind != "retinanet"},
        "resize": {"rule": "short-side", "short": 800, "long": 1333, "rounding": "nearest"},
        "assign": {"ignore_iof": None},
        "postprocess": {"score_threshold": 0.05, "score": "product", "threshold_on": "class", "nms_iou": 0.6,
                        "candidates": 2000, "level_candidates": 1000, "level_by": "class", "detections": 100},
    }  # fmt: skip
    if style == "caffe":
        mean = [102.9801, 115.9465, 122.7717] if architecture == "fcos" else [103.53, 116.28, 123.675]
        model["pixels"] = {"order": "bgr", "mean": mean, "std": [1.0, 1.0, 1.0]}
    if architecture == "fcos-improved":
        return merge(model, {"head": {"conv_bias": True}, "box": {"activation": "relu"}})
    if architecture == "fcos":
        return merge(model, {
            "head": {"quality_on": "cls"}, "assign": {"radius": 0.0}, "postprocess": {"nms_iou": 0.5},
            "box": {"unit": "pixel", "loss": "iou_log"},
        })  # fmt: skip
    model |= {"anchors": {"offset": 0.0}, "assign": {"ignore_iof": None, "padding": "absent"}}
    return merge(model, {"postprocess": {"nms_iou": 0.5}}) if kind == "retinanet" else model


def _kind(state: Mapping[str, Tensor]) -> str:
    if deformable := [key for key in state if "conv_offset" in key]:
        raise ImportRefused(
            f"it has deformable convolutions ({deformable[0]}), which have no operator in ONNX; the same detectors "
            "without them are imported (fcos-improved, atss)"
        )
    if old := [key for key in state if re.match(r"bbox_head\.(cls|reg)_convs\.\d+\.(weight|bias)$", key)]:
        raise ImportRefused(
            f"it has the layout of mmdetection 1.x ({old[0]}; other class and box conventions); upgrade it with "
            "mmdetection's tools/model_converters/upgrade_model_version.py"
        )
    for kind, names in _PREDICTIONS.items():
        if all(f"bbox_head.{name}.weight" in state for name in names):
            return kind
    if any(key.startswith(("rpn.head.", "backbone.stem.", "backbone.body.stem.")) for key in state):
        raise ImportRefused(
            "it is of the authors' own repository (maskrcnn-benchmark's names), whose boxes count "
            "pixels inclusively; mmdetection's atss and fcos-improved are the nearest"
        )
    heads = sorted({".".join(key.split(".")[:2]) for key in state if re.match(r"(bbox|rpn|roi)_head\.", key)})
    near = next((near for word, near in _NEAREST.items() if any(word in head for head in heads)), "atss")
    raise ImportRefused(
        f"it has an unknown head ({', '.join(heads[:6]) or 'none'}); imported are {', '.join(NAMES)}, "
        f"of which {near} is the nearest"
    )


def renamed(key: str, kind: str) -> str:
    """A parameter's name in isodet, for a head of `kind`; an unknown name stays as it is."""
    if match := re.fullmatch(r"neck\.(lateral|fpn)_convs\.(\d+)\.conv\.(weight|bias)", key):
        index = int(match[2])
        if match[1] == "lateral":
            return f"neck.laterals.{index}.conv.{match[3]}"
        return f"neck.outputs.{index}.conv.{match[3]}" if index < 3 else f"neck.extra.{index - 3}.conv.{match[3]}"
    if match := re.fullmatch(r"bbox_head\.(cls|reg)_convs\.(\d+)\.(conv|gn)\.(weight|bias)", key):
        tower = "cls_tower" if match[1] == "cls" else "box_tower"
        return f"head.{tower}.{match[2]}.{'norm' if match[3] == 'gn' else 'conv'}.{match[4]}"
    for name, prediction in zip(_PREDICTIONS[kind], ("cls", "box", "quality"), strict=False):
        if key.startswith(f"bbox_head.{name}."):
            return f"head.{prediction}.{key.rsplit('.', 1)[1]}"
    return key


def _config_text(meta: Mapping[str, Any]) -> str:
    """The training's configuration as text, which mmdetection's files carry under `config` or `cfg`."""
    return next((meta[name] for name in ("config", "cfg") if isinstance(meta.get(name), str)), "")


def _style(style: Style | None, text: str, kind: str) -> tuple[Style, tuple[str, ...]]:
    if style is not None:
        return style, ()
    if match := re.search(r"""style['"]?\s*[=:]\s*['"](pytorch|caffe)""", text):
        return ("caffe" if match[1] == "caffe" else "pytorch"), ()
    published: Style = "caffe" if kind == "fcos" else "pytorch"
    return published, (f"backbone style: {published} (not in the file; what mmdetection publishes {kind} with)",)


def _resize(text: str) -> dict[str, Any]:
    """Short and long side at test time: the last single (long, short) pair in the configuration."""
    pairs = re.findall(r"""\b(?:img_scale|scale)['"]?\s*[=:]\s*[\[(]\s*(\d+)\s*,\s*(\d+)\s*[\])]""", text)
    if not pairs:
        return {}
    short, long = sorted(map(int, pairs[-1]))
    return {"short": short, "long": long}


def _pixels(text: str) -> dict[str, Any]:
    """mean, std and order as the configuration says them."""
    pixels: dict[str, Any] = {}
    for name in ("mean", "std"):
        if match := re.search(rf"""\b{name}['"]?\s*[=:]\s*[\[(]([\d.,\s]+)[\])]""", text):
            numbers = [float(number) for number in match[1].replace(",", " ").split()]
            pixels |= {name: numbers} if len(numbers) == 3 else {}
    if match := re.search(r"""\b(?:bgr_)?to_rgb['"]?\s*[=:]\s*(True|False)""", text):
        pixels["order"] = "rgb" if match[1] == "True" else "bgr"
    return pixels
