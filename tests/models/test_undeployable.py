"""What others have and no graph of isodet holds is refused with the reason and what to set instead."""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Any

import pytest

from isodet.strict import ConfigError
from models.config.choices import BACKBONES
from models.config.model import AssignConfig, BoxConfig, HeadConfig, PostprocessConfig, model_config
from models.config.network import BackboneConfig, NeckConfig
from models.config.unsupported import REFUSED, refuse_undeployable

SECTIONS = {
    "backbone": BackboneConfig, "neck": NeckConfig, "head": HeadConfig, "assign": AssignConfig, "box": BoxConfig,
    "postprocess": PostprocessConfig,
}  # fmt: skip


def model(**keys: Any) -> dict[str, Any]:
    return {"classes": ["swin", "dcn", "soft"], **keys}


@pytest.mark.parametrize(
    "keys, what, instead",
    [
        ({"head": {"block": "dcn"}}, "head.block: 'dcn' asks for deformable convolution", "conv or repconv"),
        ({"head": {"block": "DeformConv2d"}}, "head.block: .* deformable", "conv or repconv"),
        ({"head": {"dcn_on_last_conv": True}}, "head.dcn_on_last_conv: True asks for deformable", "conv or repconv"),
        ({"backbone": {"name": "resnet50_dcn"}}, "backbone.name: .* deformable", "deeper backbone"),
        ({"backbone": {"dcn": {"type": "DCNv2"}}}, "backbone.dcn: .* deformable", "deeper backbone"),
        ({"neck": {"kind": "carafe-fpn"}}, "neck.kind: 'carafe-fpn' asks for content-aware", "fpn, pafpn, bifpn"),
        ({"neck": {"kind": "FPN_CARAFE"}}, "neck.kind: .*CARAFE", "nearest pixel"),
        ({"neck": {"kind": "pafpn", "upsample_cfg": {"type": "carafe"}}}, "neck.upsample_cfg: .*CARAFE", "nearest"),
        ({"neck": {"kind": "nas_fpn"}}, "neck.kind: 'nas_fpn' asks for NAS-FPN", "bifpn with neck.depth: 3"),
        ({"head": {"block": "involution"}}, "head.block: .* kernel comes from the picture", "dw or shuffle"),
        ({"head": {"norm": "ln"}}, "head.norm: 'ln' asks for a norm with statistics of the picture", "bn or sepbn"),
        ({"head": {"activation": "swish"}}, "head.activation: 'swish' asks for another activation", "ReLU"),
        ({"backbone": {"act_cfg": {"type": "GELU"}}}, "backbone.act_cfg: .* activation", "mobilenet_v3_large"),
        ({"backbone": {"name": "swin_t"}}, "backbone.name: 'swin_t' asks for an attention", "timm:convnext_tiny"),
        ({"backbone": {"name": "efficientnet_b0"}}, "backbone.name: .* only timm has", "timm:NAME"),
        ({"input_size_hw": None}, "input_size_hw: None asks for an input of any size", r"\[640, 640\]"),
        ({"input_size_hw": [-1, -1]}, "input_size_hw: .* any size", "letterboxed"),
        ({"input_size_hw": [None, 640]}, "input_size_hw: .* any size", "second export"),
        ({"input_size_hw": "dynamic"}, "input_size_hw: .* any size", "letterboxed"),
        ({"postprocess": {"nms": "soft"}}, "postprocess.nms: 'soft' asks for Soft-NMS", "nms_iou"),
        ({"postprocess": {"nms_cfg": {"type": "soft_nms"}}}, "postprocess.nms_cfg: .*Soft-NMS", "nms_iou"),
        ({"detector": "faster_rcnn"}, "detector: 'faster_rcnn' asks for a detector in two stages", "atss, retinanet"),
        ({"detector": "rt-detr"}, "detector: 'rt-detr' asks for a detector of queries", "atss, retinanet or fcos"),
    ],
)
def test_it_is_refused_with_the_alternative(keys, what, instead):
    with pytest.raises(ConfigError, match=f"^model.{what}.*, which .*; use .*{instead}"):
        model_config(model(**keys))


def test_every_refusal_is_in_the_documents_table_with_its_alternative():
    """A word more in the code is a line more in docs/architecture.md, and the other way round."""
    text = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.partition("\n## Deploy policy\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| ")][1:]
    refused = [row[0].strip() for row in rows if row[1].strip() in ("refused", "absent")]
    assert refused == [refusal.feature for refusal in REFUSED]


def test_nothing_that_isodet_has_is_refused():
    """Every name that the configuration allows, names of timm and of users' own parts; and nothing by its absence."""
    names = {("backbone", "name"): [*BACKBONES, "timm:swin_base", "timm:efficientnet_b0", "my.dcn:Deformable"]}
    for section, kind in SECTIONS.items():
        for key, hint in typing.get_type_hints(kind).items():
            options = [hint, *typing.get_args(hint)]  # a Literal, or one of several types
            choices = [a for option in options for a in typing.get_args(option) if isinstance(a, str)]
            names.setdefault((section, key), choices)
    assert names["neck", "kind"] and names["head", "block"]
    for (section, key), values in names.items():
        for value in [*values, None, False]:
            refuse_undeployable({section: {key: value}, "input_size_hw": [640, 96]}, "model")
    for detector in ("atss", "retinanet", "fcos"):
        assert model_config(model(detector=detector)).detector == detector


def test_patterns_are_about_keys_that_exist_or_that_others_have():
    """A key of isodet's that is refused whatever its value would be a key that nobody can set."""
    anything = [key for refusal in REFUSED for key, pattern in refusal.keys.items() if re.search(pattern, "qqq")]
    own = {f"{section}.{key}" for section, kind in SECTIONS.items() for key in typing.get_type_hints(kind)}
    assert anything and not own & set(anything)
