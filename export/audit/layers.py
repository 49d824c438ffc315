"""The convolutions of an ONNX graph: their FLOPs, and the precision that a strongly typed build gives them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from onnx import TensorProto

_TYPES = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.DOUBLE: "fp64",
}
_MOVES = ("MaxPool", "Concat", "Resize", "Reshape", "Transpose", "Slice")
"""Operations that only move or select numbers work on integers if their input is dequantized."""
_SUFFIXES = (".weight", ".steps", "_weight")


@dataclass(frozen=True)
class ConvLayer:
    """One convolution of a graph. A module that pyramid levels share is one convolution for each level.

    name: of the module in the network, such as head.cls. node: name of the node in the graph, or of the layer in an
    engine. mflops: for one image, two for each multiplication with its addition. precision: int8, fp16, fp32, or
    another type. compiled: in an engine, it is inside a kernel that the inspector cannot look into.
    """

    name: str
    node: str
    mflops: float
    precision: str
    compiled: bool = False


def network_layers(model: onnx.ModelProto) -> Iterator[ConvLayer]:
    """Every Conv and ConvTranspose of the main graph, in its order."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {v.name: v.type.tensor_type for v in (*inferred.value_info, *inferred.input, *inferred.output)}
    weights = {tensor.name: tensor for tensor in inferred.initializer}
    producers = {output: node for node in inferred.node for output in node.output}
    for node in inferred.node:
        if node.op_type not in ("Conv", "ConvTranspose"):
            continue
        weight = _source(node.input[1], producers)
        shape = list(weights[weight].dims) if weight in weights else _shape(types[node.input[1]])
        # Each position of the output (of a transposed convolution: of the input) uses every weight once.
        positions = node.output[0] if node.op_type == "Conv" else node.input[0]
        products = math.prod(_shape(types[positions])[2:]) * math.prod(shape)
        if all(_is_integer(name, producers) for name in node.input[:2]):
            precision = "int8"
        elif node.input[0] in types:
            kind = types[node.input[0]].elem_type
            precision = _TYPES.get(kind, TensorProto.DataType.Name(kind).lower())
        else:
            precision = "unknown"
        yield ConvLayer(_module(weight, node.name), node.name or node.output[0], 2 * products / 1e6, precision)


def _shape(kind: onnx.TypeProto.Tensor) -> list[int]:
    """The sizes of a tensor; 1 for a free one, which is the batch."""
    return [dim.dim_value or 1 for dim in kind.shape.dim]


def _is_integer(name: str, producers: dict[str, onnx.NodeProto]) -> bool:
    """Whether a tensor holds dequantized integers, perhaps moved or selected."""
    node = producers.get(name)
    if node is None or node.op_type not in (*_MOVES, "DequantizeLinear"):
        return False
    if node.op_type == "DequantizeLinear":
        return True
    moved = node.input if node.op_type == "Concat" else node.input[:1]
    return all(_is_integer(source, producers) for source in moved)


def _source(name: str, producers: dict[str, onnx.NodeProto]) -> str:
    """The initializer behind a weight: through its DequantizeLinear, a Cast or a Transpose."""
    while name in producers and producers[name].op_type in ("DequantizeLinear", "QuantizeLinear", "Cast", "Transpose"):
        name = producers[name].input[0]
    return name


def _module(weight: str, node: str) -> str:
    """The module that a weight belongs to, by its name in models.quant; `node` for a weight without a known name."""
    for suffix in _SUFFIXES:
        if weight.endswith(suffix):
            return weight.removesuffix(suffix).removeprefix("detector.").removeprefix("graph.")
    return node
