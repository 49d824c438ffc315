"""What an exported graph is made of: operators from a closed list, and shapes that no picture can change."""

from __future__ import annotations

import itertools
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from export.graph.form import _trace
from export.graph.form import simplified as _simplified
from export.options import OnnxOptions
from isodet.strict import ConfigError
from models.config.choices import NECKS
from models.config.model import PRESETS, ModelConfig, model_config
from models.deploy.graph import Deploy
from models.detector import Detector
from models.layers.fuse import fuse
from models.layers.heads import Head
from models.layers.necks import build_neck

OPERATORS = {
    "Add", "And", "Cast", "Clip", "Concat", "Conv", "Div", "Equal", "Exp", "Expand", "Gather", "GatherElements",
    "GatherND", "Greater", "GreaterOrEqual", "HardSigmoid", "Less", "MatMul", "Max", "MaxPool", "Min", "Mod", "Mul",
    "Pad", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Relu", "Reshape", "Resize", "Shape", "Sigmoid",
    "Slice", "Split", "Sqrt", "Squeeze", "Sub", "TopK", "Transpose", "Trilu", "Unsqueeze", "Where",
}  # fmt: skip
"""Of ONNX itself, dense, with output shapes that follow from input shapes. No branch, no loop, no NonZero."""
OF_DISTRIBUTIONS = {"gfl": {"Softmax"}, "gflv2": {"Softmax", "ReduceMean", "Gemm"}}
"""What `box.code: dfl` adds, and the quality that is read off it."""
GROUP_NORM = {"InstanceNormalization"}
"""How opset 20 writes the GroupNorm that old heads have."""


def config(head: dict[str, Any], neck: str = "fpn", **keys: Any) -> ModelConfig:
    return model_config({
        "classes": ["a", "b"], "input_size_hw": [64, 96], "backbone": {"name": "resnet18", "width": 0.125},
        "neck": {"kind": neck, "channels": 16, "levels": [3, 5]}, "head": {"depth": 1, **head},
        "postprocess": {"candidates": 20, "detections": 5}, **keys,
    })  # fmt: skip


def legal_heads() -> list[dict[str, str]]:
    blocks, norms = (("conv", "dw", "shuffle", "repconv"), ("none", "gn", "bn", "sepbn"))
    heads = []
    for block, norm in itertools.product(blocks, norms):
        try:
            config({"block": block, "norm": norm})
        except ConfigError:
            continue
        heads.append({"block": block, "norm": norm})
    return heads


def check(model: onnx.ModelProto, operators: set[str]) -> None:
    """`model`, of a fixed batch, holds only `operators`, and every tensor in it has a size that is a number."""
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert not model.functions
    assert {node.op_type for node in model.graph.node} <= operators
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {v.name: v.type.tensor_type.shape for v in (*graph.value_info, *graph.output)}
    for node in graph.node:
        for name in filter(None, node.output):
            assert name in shapes, f"{node.op_type} {name} has no shape"
            for dim in shapes[name].dim:
                assert dim.HasField("dim_value"), f"{node.op_type} {name}: {dim.dim_param or 'unknown'}"


class Crossings(nn.Module):
    """One backbone, each neck on it, each head on one of the necks: the crossings in one graph, folded."""

    def __init__(self, heads: list[dict[str, str]], necks: tuple[str, ...]):
        super().__init__()
        base = Detector(config({}))
        self.pixels, self.backbone = base.pixels, base.backbone
        self.necks = nn.ModuleList(build_neck(config({}, neck).neck, self.backbone.channels) for neck in necks)
        self.heads = nn.ModuleList(Head(config(head), levels=3) for head in heads)

    def forward(self, images: Tensor) -> list[Tensor]:
        features = self.backbone(self.pixels(images))
        pyramids = [neck(features) for neck in self.necks]
        found = [head(pyramids[i % len(pyramids)]) for i, head in enumerate(self.heads)]
        return [part.sum(dim=1) for parts in found for part in parts if part is not None]


@pytest.mark.parametrize("norm", ["gn", "others"])
def test_every_block_norm_and_neck_is_dense_standard_operators_of_fixed_shape(norm):
    heads = [head for head in legal_heads() if (head["norm"] == "gn") == (norm == "gn")]
    assert len(heads) == (3 if norm == "gn" else 10)  # repconv has bn only
    torch.manual_seed(0)
    model = fuse(Crossings(heads, tuple(NECKS)).eval())
    images = torch.zeros(2, 64, 96, 3, dtype=torch.uint8)
    program = torch.onnx.export(model, (images,), dynamo=True, opset_version=20, verbose=False)
    assert program is not None
    allowed = OPERATORS | (GROUP_NORM if norm == "gn" else set())
    for graph in (program.model_proto, _simplified(program.model_proto)):
        assert ("InstanceNormalization" in {n.op_type for n in graph.graph.node}) == (norm == "gn")
        check(graph, allowed)


@pytest.mark.parametrize("preset", PRESETS)
def test_decoding_and_nms_of_every_preset_too(preset):
    torch.manual_seed(0)
    deploy = Deploy(Detector(config({"norm": "sepbn"}, detector=preset)).eval()).eval()
    traced = _trace(deploy, OnnxOptions(batch=2), "portable")
    for model in (traced, _simplified(traced)):
        check(model, OPERATORS | OF_DISTRIBUTIONS.get(preset, set()))
