"""The audit: FLOPs and precisions of graphs made by hand, and TensorRT's account of engines in both of its forms."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from export.audit.audit import Audit, AuditError, audit_engine, audit_file, audit_network
from export.audit.inspector import InspectorError
from export.audit.layers import ConvLayer, network_layers
from runtime.card.card import Card, CardError
from tests.at_fault import raises


def card(precision: str, **keys: Any) -> Card:
    nms = {"kind": "portable", "iou": 0.6, "candidates": 4, "detections": 2}
    return Card("onnx", ("a",), (8, 8), 0.05, nms, precision=precision, **keys)


def graph(nodes: list[onnx.NodeProto], shape: list[int | str], kind: int = TensorProto.FLOAT, **weights: Any) -> Any:
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    images = helper.make_tensor_value_info("x", kind, shape)
    out = helper.make_tensor_value_info("y", kind, None)
    content = helper.make_graph(nodes, "g", [images], [out], tensors)
    return helper.make_model(content, opset_imports=[helper.make_opsetid("", 20)])


def conv(x: str, w: str, y: str, kind: str = "Conv", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, [x, w], [y], name=f"node_{y}", **attributes)


@pytest.mark.parametrize(
    ("kind", "shape", "weight", "attributes"),
    [
        ("Conv", [1, 6, 10, 12], (8, 6, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ("Conv", [1, 6, 10, 12], (6, 2, 3, 3), {"group": 3}),
        ("Conv", [1, 6, 10, 12], (4, 6, 3, 3), {"dilations": [2, 2]}),
        ("ConvTranspose", [1, 6, 5, 7], (6, 4, 2, 2), {"strides": [2, 2]}),
        ("Conv", ["n", 6, 10, 12], (8, 6, 1, 1), {}),
    ],
)
def test_flops_are_those_that_torch_counts(kind, shape, weight, attributes):
    from torch.utils.flop_counter import FlopCounterMode

    model = graph([conv("x", "w", "y", kind, **attributes)], shape, w=np.zeros(weight, np.float32))
    (layer,) = network_layers(model)
    images, w = torch.zeros([1, *shape[1:]]), torch.zeros(weight)
    with FlopCounterMode(display=False) as counter:
        if kind == "Conv":
            names = {"strides": "stride", "dilations": "dilation", "group": "groups"}
            keys = {ours: attributes[name] for name, ours in names.items() if name in attributes}
            torch.conv2d(images, w, padding=attributes.get("pads", [0])[0], **keys)
        else:
            torch.conv_transpose2d(images, w, None, attributes["strides"])
    assert layer.mflops * 1e6 == pytest.approx(counter.get_total_flops())


def quantized(x: str, y: str, out: str = "") -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [x, "s", "z"], [f"{y}_q"]),
        helper.make_node("DequantizeLinear", [f"{y}_q", "s", "z"], [out or y]),
    ]


def mixed() -> onnx.ModelProto:
    """An int8 convolution behind a pool, one with integers on one side only, one of integers added up, one in float."""
    nodes = [
        *quantized("x", "xq"),
        helper.make_node("MaxPool", ["xq"], ["pooled"], kernel_shape=[1, 1]),
        helper.make_node("DequantizeLinear", ["a.steps", "s", "z"], ["aw"]),
        conv("pooled", "aw", "a_out"),
        conv("xq", "detector.graph.b.weight", "b_out"),
        *quantized("a_out", "aq"), *quantized("b_out", "bq"),
        helper.make_node("Add", ["aq", "bq"], ["sum"]),
        helper.make_node("DequantizeLinear", ["c.steps", "s", "z"], ["cw"]),
        conv("sum", "cw", "c_out"),
        conv("c_out", "detector.graph.head.cls.weight", "y"),
    ]  # fmt: skip
    weight = np.zeros((4, 4, 1, 1), np.float32)
    return graph(
        nodes, ["n", 4, 5, 5], s=np.float32(0.1), z=np.int8(0),
        **{"a.steps": weight.astype(np.int8), "c.steps": weight.astype(np.int8), "detector.graph.b.weight": weight,
           "detector.graph.head.cls.weight": weight},
    )  # fmt: skip


def test_what_is_int8_and_what_only_looks_like_it():
    found = {layer.name: layer.precision for layer in network_layers(mixed())}
    assert found == {"a": "int8", "b": "fp32", "c": "fp32", "head.cls": "fp32"}


def test_what_was_asked_for_and_is_not_so_is_named():
    audit = audit_network(mixed(), card("int8"))
    assert audit.share("int8") == 0.25 and audit.missed() == ("b", "c")  # the prediction is meant to be in float
    with pytest.raises(AuditError, match=r"m.onnx: int8 was asked for, but 2 layers are not .INT8 25.0 %.*: b, c; a"):
        audit.require("m.onnx")
    audit.require("m.onnx", allow=("[bc]",))
    with pytest.raises(AuditError, match="1 layers are not"):
        audit.require("m.onnx", allow=("b",))
    named = audit_network(mixed(), card("int8", quantization={"kind": "ptq", "float_layers": ["b", "c"]}))
    named.require("m.onnx")
    table = audit.table(allow=("c",)).splitlines()
    assert "INT8 25.0 %, FP32 75.0 %, by the typed network; asked for: INT8" in table[0]
    assert [line.split()[0] for line in table[1:]] == ["b", "c", "head.cls"]
    assert [line.rpartition("FLOPs  ")[2] for line in table[1:]] == ["NOT WHAT WAS ASKED FOR", "allowed", "meant to be"]


@pytest.mark.parametrize("asked", ["fp16", "fp32"])
def test_half_precision_is_the_type_of_the_tensors(asked):
    weight = np.zeros((4, 4, 1, 1), np.float16)
    nodes = [
        conv("x", "a.weight", "h"),
        helper.make_node("Cast", ["h"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["b.weight"], ["wide"], to=TensorProto.FLOAT),
        conv("f", "wide", "f2"),
        helper.make_node("Cast", ["f2"], ["y"], to=TensorProto.FLOAT16),
    ]
    model = graph(nodes, [1, 4, 2, 2], TensorProto.FLOAT16, **{"a.weight": weight, "b.weight": weight})
    audit = audit_network(model, card(asked))
    assert audit.share("fp16") == audit.share("fp32") == 0.5
    assert audit.missed() == (("b",) if asked == "fp16" else ("a",))


def test_a_graph_without_convolutions_proves_nothing():
    model = graph([helper.make_node("Relu", ["x"], ["y"])], [1, 4, 2, 2])
    with pytest.raises(AuditError, match="no convolution was found"):
        audit_network(model, card("fp32")).require("m.onnx")


def test_files_that_are_no_subject(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"PK\x03\x04")
    with raises(CardError, path=tmp_path / "w.pt"):
        audit_file(tmp_path / "w.pt")
    broken = helper.make_model(helper.make_graph([], "g", [], []))
    broken.metadata_props.add(key="isodet", value=json.dumps(card("fp32").to_json()))
    content = broken.SerializeToString()
    (tmp_path / "m.onnx").write_bytes(content.replace(b"\x3a\x03\x12\x01g", b"\x3a\x03\x12\x05g"))
    assert (tmp_path / "m.onnx").read_bytes() != content
    with raises(CardError, path=tmp_path / "m.onnx"):
        audit_file(tmp_path / "m.onnx")


TYPED = Audit(
    "int8", "network",
    (ConvLayer("backbone.conv1", "node_conv_1", 3.0, "int8"), ConvLayer("neck.lateral", "node_conv_2", 1.0, "int8"),
     ConvLayer("neck.other", "node_conv_3", 1.0, "int8"), ConvLayer("head.cls", "node_conv_4", 1.0, "fp16")),
    ("head.cls",),
)  # fmt: skip


def layer(name: str, kind: str, weight: str, tensor: dict[str, str], **more: Any) -> dict[str, Any]:
    """As version 10 documents a convolution, without what the audit does not read."""
    ends = {"Name": "t", "Location": "Device", "Dimensions": [1, 8, 10, 10], **tensor}
    return {
        "Name": name, "LayerType": "CaskConvolution", "Inputs": [ends], "Outputs": [ends], "ParameterType": kind,
        "Kernel": [3, 3], "Weights": {"Type": weight, "Count": 4608}, "Activation": "RELU", **more,
    }  # fmt: skip


def account(version: int, first: str = "Int8", inputs: str = "Int8") -> str:
    """A convolution of its own kernel, two that were joined, and a compiled layer with the fourth inside."""
    long = {"Int8": "Thirty-two wide channel vectorized row major Int8 format", "Half": "Row major linear FP16 format"}
    if version == 10:
        ends = {"Format/Datatype": long[inputs]}
        io: dict[str, Any] = {"Bindings": ["images", "boxes"]}
    else:
        ends = {"Format": "Thirty-two wide channel vectorized row major", "DataType": inputs}
        io = {"I/O Tensors": [{"Name": "images", "IOMode": "Input", "DataType": "UInt8", "Dimensions": [1, 8, 8, 3]}]}
    layers = [
        {"Name": "Reformatting CopyNode for Input Tensor 0 to node_conv_1", "LayerType": "Reformat", "Inputs": [],
         "Outputs": [], "ParameterType": "Reformat"},
        layer("node_conv_1 + node_relu", "Convolution", first, ends),
        layer("node_conv_2 || node_conv_3", "Convolution", "Int8", ends),
        {"Name": "{ForeignNode[node_conv_4...node_topk]}", "LayerType": "Myelin", "Inputs": [], "Outputs": [],
         "Metadata": "[ONNX Layer: node_conv_4]\u001f[ONNX Layer: node_topk]"},
    ]  # fmt: skip
    return json.dumps({"Layers": layers, **io})


@pytest.mark.parametrize("version", [10, 11])
def test_an_engine_that_kept_its_promise(version):
    audit = audit_engine(account(version), TYPED)
    assert audit.source == "inspector" and audit.missed() == ()
    assert {part.name: part.precision for part in audit.layers} == {part.name: part.precision for part in TYPED.layers}
    assert audit.share("int8") == pytest.approx(5 / 6) and audit.compiled == pytest.approx(1 / 6)
    assert "by the engine's inspector (17% in compiled kernels, by the typed network)" in audit.table()


@pytest.mark.parametrize("version", [10, 11])
def test_an_engine_that_did_not(version):
    assert audit_engine(account(version, first="Half"), TYPED).missed() == ("backbone.conv1",)
    audit = audit_engine(account(version, inputs="Half"), TYPED)  # int8 weights, but multiplied in half precision
    assert audit.missed() == ("backbone.conv1", "neck.lateral", "neck.other")
    assert audit.share("fp16") == 1.0


def test_a_convolution_that_the_engine_does_not_mention_is_not_proven():
    content = json.loads(account(11))
    del content["Layers"][1]
    assert audit_engine(json.dumps(content), TYPED).missed() == ("backbone.conv1",)


def test_a_convolution_of_no_node_counts_by_its_weights():
    unnamed = layer("(Unnamed Layer* 1)", "Convolution", "Float", {"Format/Datatype": "N/A due to dynamic shapes"})
    audit = audit_engine(json.dumps({"Layers": [unnamed]}), replace(TYPED, layers=()))
    (found,) = audit.layers
    assert found.precision == "fp32" and found.mflops == pytest.approx(2 * 4608 * 100 / 1e6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"Layers": ["node_conv_1", "node_conv_2"]}', "without details"),
        ('{"Bindings": []}', "no list of layers"),
        ("[]", "no JSON object"),
        ("{", "gave no JSON"),
    ],
)
def test_accounts_that_say_nothing(text, message):
    with pytest.raises(InspectorError, match=message):
        audit_engine(text, TYPED)


def test_the_form_in_a_sidecar():
    assert Audit.from_json(json.loads(json.dumps(TYPED.to_json())), "x") == TYPED
    with raises(CardError, key="engine.audit", path="x"):
        Audit.from_json({"asked": "int8"}, "x")
