"""8 bits in OpenVINO: a rounding before a max pooling, which OpenVINO gets wrong, is moved behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from runtime.backends.openvino.backend import round_after_pooling

SIZE, CHANNELS = 16, 8


def quantized_stem(two_readers: bool = False) -> onnx.ModelProto:
    """The stem of a ResNet in 8 bits: convolution, ReLU, rounding, max pooling, convolution. Two heads are joined by
    a Concat. two_readers: what was rounded is read past the pooling, too."""
    rng = np.random.default_rng(0)
    tensors: dict[str, NDArray[Any]] = {
        "w1": rng.integers(-127, 128, (CHANNELS, 3, 3, 3)).astype(np.int8),
        "w2": rng.integers(-127, 128, (CHANNELS, CHANNELS, 3, 3)).astype(np.int8),
        "head": rng.normal(size=(4, CHANNELS, 1, 1)).astype(np.float32),
        "w1_scale": rng.uniform(1e-3, 3e-3, CHANNELS).astype(np.float32),
        "w2_scale": rng.uniform(1e-3, 3e-3, CHANNELS).astype(np.float32),
        "input_scale": np.float32(0.02), "stem_scale": np.float32(0.03), "block_scale": np.float32(0.05),
        "zero": np.int8(0), "zeros": np.zeros(CHANNELS, np.int8), "rows": np.array([1, 4, -1]),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "input_scale", "zero"], ["q0"]),
        helper.make_node("DequantizeLinear", ["q0", "input_scale", "zero"], ["x0"]),
        helper.make_node("DequantizeLinear", ["w1", "w1_scale", "zeros"], ["w1_float"], axis=0),
        helper.make_node("Conv", ["x0", "w1_float"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("QuantizeLinear", ["r1", "stem_scale", "zero"], ["q1"]),
        helper.make_node("DequantizeLinear", ["q1", "stem_scale", "zero"], ["x1"]),
        helper.make_node("MaxPool", ["x1"], ["pooled"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("DequantizeLinear", ["w2", "w2_scale", "zeros"], ["w2_float"], axis=0),
        helper.make_node("Conv", ["pooled", "w2_float"], ["c2"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("QuantizeLinear", ["r2", "block_scale", "zero"], ["q2"]),
        helper.make_node("DequantizeLinear", ["q2", "block_scale", "zero"], ["x2"]),
        helper.make_node("Conv", ["x1" if two_readers else "r2", "head"], ["h1"]),
        helper.make_node("Conv", ["x2", "head"], ["h2"]),
        helper.make_node("Reshape", ["h1", "rows"], ["v1"]),
        helper.make_node("Reshape", ["h2", "rows"], ["v2"]),
        helper.make_node("Concat", ["v1", "v2"], ["joined"], axis=2),
    ]  # fmt: skip
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIZE, SIZE])
    joined = helper.make_tensor_value_info("joined", TensorProto.FLOAT, [1, 4, None])
    initializers = [numpy_helper.from_array(np.asarray(values), name) for name, values in tensors.items()]
    graph = helper.make_graph(nodes, "stem", [image], [joined], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def error(model: onnx.ModelProto, moved: bool) -> tuple[float, int]:
    """The largest error of OpenVINO over the largest number, and the roundings that are left before a pooling."""
    images = np.random.default_rng(1).normal(size=(1, 3, SIZE, SIZE)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # node by node, in float
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"images": images})
    core = openvino.Core()
    graph = core.read_model(model.SerializeToString())
    if moved:
        round_after_pooling(graph)
    before = [
        op for op in graph.get_ordered_ops()
        if op.get_type_name() == "MaxPool" and op.input_value(0).get_node().get_type_name() != "Relu"
    ]  # fmt: skip
    found = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([images])[0]
    return float(np.abs(found - expected).max() / np.abs(expected).max()), len(before)


@pytest.mark.parametrize("two_readers", [False, True], ids=["one reader", "two readers"])
def test_a_rounding_before_a_max_pooling_keeps_its_step(two_readers: bool) -> None:
    model = quantized_stem(two_readers)
    assert error(model, moved=False)[1] == 1
    largest, left = error(model, moved=True)
    assert left == 0
    assert largest < 0.02  # single roundings to the other side
