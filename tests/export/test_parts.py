"""Each family of backbones, necks, blocks and norms becomes an ONNX graph that computes the same."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest

import export
from export.graph.nms import without_functions
from export.graph.tracing import simplified
from models.config.model import model_config
from tests.export.networks import assert_same, save_untrained

CLASSES = ("a", "b", "c")
with_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is an extra: isodet[timm]")
PARTS: dict[str, dict[str, Any]] = {
    "resnet18, PAFPN, depthwise sepbn head": {
        "backbone": {"name": "resnet18"}, "neck": {"kind": "pafpn"}, "head": {"norm": "sepbn", "block": "dw"},
    },
    "mobilenet_v3, BiFPN, shuffle head": {
        "backbone": {"name": "mobilenet_v3_large"}, "neck": {"kind": "bifpn"},
        "head": {"norm": "bn", "block": "shuffle", "depth": 1},
    },
    "qarepvgg, RepPAN from P2, repconv head, implicit": {
        "backbone": {"name": "qarepvgg_a0"}, "neck": {"kind": "reppan", "depth": 2, "levels": [2, 5]},
        "head": {"norm": "bn", "block": "repconv", "implicit": True},
    },
    "resnext, caffe, dilated, GroupNorm, FPN, GroupNorm head": {
        "backbone": {"name": "resnext50_32x4d", "style": "caffe", "dilated": True, "norm": "gn"},
        "head": {"norm": "gn", "implicit": True},
    },
}  # fmt: skip


def untrained(path: Path, parts: dict[str, Any]) -> Path:
    """A checkpoint of random weights that finds something everywhere."""
    config = model_config({
        "classes": CLASSES, "input_size_hw": [96, 128], "postprocess": {"candidates": 60, "detections": 25},
        "backbone": {"width": 0.125, **parts["backbone"]},
        "neck": {"channels": 32, "levels": [3, 6], "norm": "bn", **parts.get("neck", {})},
        "head": {"depth": 2, "prior": 0.2, **parts["head"]},
    })  # fmt: skip
    return save_untrained(path, config, lambda name: name.split(".")[0] in ("cls", "box", "quality"), (8,))


@pytest.mark.parametrize("name", PARTS)
def test_every_family_deploys(tmp_path, name):
    result = export.to_onnx(untrained(tmp_path / "w.pt", PARTS[name]))
    assert result.fold_difference <= 1e-4
    operators = {n.op_type for n in onnx.load(result.path).graph.node}
    assert not operators & {"BatchNormalization", "Loop", "If", "Scan", "NonMaxSuppression"}
    assert_same(tmp_path / "w.pt", result.path, (1, 3))


@with_timm
@pytest.mark.parametrize("name", ["seresnet18", "gcresnext26ts", "convnext_atto", "mobilenetv3_small_050"])
def test_networks_of_timm_deploy(tmp_path, name):
    """With and without the simplifier, which folds the norms that only timm knows."""
    parts = {"backbone": {"name": f"timm:{name}", "width": 1.0}, "head": {"depth": 1}}
    checkpoint = untrained(tmp_path / "w.pt", parts)
    traced = export.to_onnx(checkpoint, tmp_path / "traced.onnx", export.OnnxOptions(simplify=False)).path
    model = onnx.load(traced)
    slim = simplified(without_functions(model))  # as the export does, which is spared a second trace here
    slim.functions.extend(model.functions)
    onnx.save(slim, tmp_path / "slim.onnx")
    for path in (traced, tmp_path / "slim.onnx"):
        operators = {n.op_type for n in onnx.load(path).graph.node}
        assert not operators & {"Loop", "If", "Scan", "NonMaxSuppression"}
        assert path == traced or "BatchNormalization" not in operators
        assert_same(checkpoint, path, (1, 3))


def test_norms_for_each_level_cost_no_copies_of_the_towers_and_an_engine_folds_them(tmp_path):
    """The file holds the shared convolutions once; ONNX Runtime turns factor and shift into convolutions."""
    parts = {"backbone": {"name": "resnet18"}, "neck": {"kind": "pafpn"}, "head": {"norm": "sepbn"}}
    # Portable, because ONNX Runtime would inline the body of the plugin, whose products are others.
    result = export.to_onnx(untrained(tmp_path / "w.pt", parts), options=export.OnnxOptions(nms="portable"))
    levels, blocks = 4, 4
    before = onnx.load(result.path).graph.node
    users = Counter(n.input[1] for n in before if n.op_type == "Conv")
    assert sum(count == levels for count in users.values()) == blocks + 3  # and the three predictions

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(result.path, options, providers=["CPUExecutionProvider"])
    after = onnx.load(tmp_path / "optimized.onnx").graph.node
    for kind in ("Mul", "Add"):
        assert sum(n.op_type == kind for n in before) - sum(n.op_type == kind for n in after) >= levels * blocks
