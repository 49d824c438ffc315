"""Each family of backbones, necks, blocks and norms becomes an ONNX graph that computes the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import export
from export.drift import drift
from models.checkpoint import load_detector, save_checkpoint
from models.config import model_config
from models.detector import Detector as Network
from models.typed import to_mapping
from runtime import Card, Detections

CLASSES = ("a", "b", "c")
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
    torch.manual_seed(3)
    model = Network(config)
    with torch.no_grad():
        for name, p in model.head.named_parameters():
            if name.split(".")[0] in ("cls", "box", "quality") and p.ndim == 4:
                p.normal_(std=0.1)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0  # statistics of one batch; moving averages would let activations fade away
        model(torch.randint(0, 256, (8, 96, 128, 3), dtype=torch.uint8))
    post = config.postprocess
    nms = {"kind": "portable", "iou": post.nms_iou, "candidates": post.candidates, "detections": post.detections}
    card = Card(
        kind="checkpoint", classes=CLASSES, input_size_hw=(96, 128), score_threshold=post.score_threshold, nms=nms,
        model=to_mapping(config),
    )  # fmt: skip
    save_checkpoint(path, model.state_dict(), card.to_json())
    return path


@pytest.mark.parametrize("name", PARTS)
def test_every_family_deploys(tmp_path: Path, name: str) -> None:
    result = export.to_onnx(untrained(tmp_path / "w.pt", PARTS[name]))
    assert result.fold_difference <= 1e-4
    operators = {n.op_type for n in onnx.load(result.path).graph.node}
    assert not operators & {"BatchNormalization", "Loop", "If", "Scan", "NonMaxSuppression"}
    deploy, _ = load_detector(tmp_path / "w.pt")
    session = onnxruntime.InferenceSession(result.path, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        images = np.random.default_rng(batch).integers(0, 256, (batch, 96, 128, 3), dtype=np.uint8)
        with torch.inference_mode():
            expected = [t.numpy() for t in deploy(torch.from_numpy(images))]
        assert expected[0].sum() > 5 * batch  # otherwise this would compare nothing
        pairs = [
            {i: Detections(boxes[: n[0]], scores[: n[0]], labels[: n[0]], CLASSES) for i, (n, boxes, scores, labels)
             in enumerate(zip(*outputs, strict=True))}
            for outputs in (expected, session.run(None, {"images": images}))
        ]  # fmt: skip
        apart = drift(*pairs)
        assert apart.unmatched == 0 and apart.box_max_px < 0.05 and apart.score_max < 1e-3


def test_norms_for_each_level_cost_no_copies_of_the_towers_and_an_engine_folds_them(tmp_path: Path) -> None:
    """The file holds the shared convolutions once; ONNX Runtime turns factor and shift into convolutions."""
    parts = {"backbone": {"name": "resnet18"}, "neck": {"kind": "pafpn"}, "head": {"norm": "sepbn"}}
    result = export.to_onnx(untrained(tmp_path / "w.pt", parts))
    levels, blocks = 4, 4
    before = onnx.load(result.path).graph.node
    users = Counter(n.input[1] for n in before if n.op_type == "Conv")
    assert sum(count == levels for count in users.values()) == blocks + 3  # and the three predictions

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(result.path, options, providers=["CPUExecutionProvider"])
    after = onnx.load(tmp_path / "optimised.onnx").graph.node
    for kind in ("Mul", "Add"):
        assert sum(n.op_type == kind for n in before) - sum(n.op_type == kind for n in after) >= levels * blocks
