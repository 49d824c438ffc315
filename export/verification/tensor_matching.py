"""Matching the tensors of two graphs of one network, by the paths of its weights.

Names of tensors change with precision, simplifier and exporter. The paths of weights (`detector.backbone.conv1.weight`;
8-bit: `detector.graph.backbone.conv1.steps_0`) and the operations between weights stay. So every tensor gets a key, and
tensors with equal keys match:
- The key of a convolution's output is made of its weight's path and the output's size, because levels share weights.
- The key of any other output is made of its operation and the keys of its inputs.
- A node that only changes the type of numbers (Cast, QuantizeLinear, DequantizeLinear) passes on its input's key.
- A constant gain and shift behind a convolution, as pyramid levels have, belong to the convolution, because 8-bit
  graphs have them in the scale of its weight.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

SAME_NUMBERS = {"Cast", "Identity", "QuantizeLinear", "DequantizeLinear"}
_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_COMMUTES = {"Add", "Mul", "Max", "Min", "Sum", "And", "Or", "Equal"}
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}


@dataclass(frozen=True)
class Tensor:
    """A tensor that a node of a graph writes.

    module: path in the PyTorch network; for a node without a weight, "after" and the path of the last weight before it.
    inputs: names of the tensors that the node reads. ordered: False behind a TopK, where equal numbers may have another
    order. weight: path of the weight of a convolution, or of that which a DequantizeLinear gives. comparable: it holds
    floats; integers are indices, or 8-bit steps that have no meaning without their scale.
    """

    name: str
    key: str
    node: str
    op: str
    module: str
    inputs: tuple[str, ...]
    ordered: bool
    weight: str | None
    comparable: bool


def weight_path(name: str) -> str | None:
    """The path of a weight in the network, from the name of its ONNX initializer; None for other constants."""
    for prefix in ("detector.", "graph."):
        name = name.removeprefix(prefix)
    for suffix in ("_quantized", "_DequantizeLinear_Output", "_fp16"):
        name = name.removesuffix(suffix)
    if "." not in name:
        return None
    return re.sub(r"\.steps(_\d+)?$", ".weight", name)


def tensors(model: ModelProto) -> list[Tensor]:
    """The outputs of the nodes of `model`, in their order."""
    return list(_Reader(model).read())


def initializers(model: ModelProto) -> dict[str, TensorProto]:
    """The constants of a graph by name, including those of Constant nodes."""
    constants = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    return constants


class _Reader:
    """Gives the tensors of a graph their keys, in one pass from the inputs to the outputs."""

    def __init__(self, model: ModelProto):
        self.model = model
        self.constants = initializers(model)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        values = (*inferred.value_info, *inferred.output, *inferred.input)
        self.types = {v.name: v.type.tensor_type for v in values}
        self.keys = {v.name: _digest("input", str(i)) for i, v in enumerate(model.graph.input)}
        self.last_module = {v.name: "" for v in model.graph.input}
        self.times: Counter[str] = Counter()
        self.affine = dict(self._affines())  # by output of a convolution: that of the gain and shift behind it
        self.affine_keys: dict[str, str] = {}  # by output of a gain and shift: its key
        self.with_affine: set[str] = set()  # paths of weights of such convolutions
        self.unordered: set[str] = set()

    def read(self) -> Iterator[Tensor]:
        for node in self.model.graph.node:
            if node.op_type == "Constant":
                continue
            path = self._weight(node)
            module = path.removesuffix(".weight") if path else self._before(node)
            ordered = node.op_type != "TopK" and not self.unordered.intersection(node.input)
            for i, output in enumerate(node.output):
                if not output:
                    continue
                self.keys[output] = self._key(node, i, path)
                self.last_module[output] = module.removeprefix("after ")
                if not ordered:
                    self.unordered.add(output)
                floats = output not in self.types or self.types[output].elem_type in _FLOATS
                yield Tensor(
                    output, self.keys[output], node.name or output, node.op_type, module, tuple(node.input), ordered,
                    path, floats and node.op_type != "QuantizeLinear",
                )  # fmt: skip

    def _affines(self) -> Iterator[tuple[str, str]]:
        readers: dict[str, list[NodeProto]] = {}
        for node in self.model.graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        for node in self.model.graph.node:
            if node.op_type not in _WEIGHTED:
                continue
            last = current = node.output[0]
            remaining = ["Mul", "Add"]
            while len(users := readers.get(current, [])) == 1 and (remaining or users[0].op_type in SAME_NUMBERS):
                current = users[0].output[0]
                if users[0].op_type in SAME_NUMBERS:
                    continue
                if users[0].op_type not in remaining or not any(name in self.constants for name in users[0].input):
                    break
                remaining = remaining[remaining.index(users[0].op_type) + 1 :]
                last = current
            if last != node.output[0]:
                yield node.output[0], last

    def _weight(self, node: NodeProto) -> str | None:
        """The path of the weight that `node` multiplies with, or converts."""
        if node.op_type in SAME_NUMBERS and node.input[0] in self.constants:
            return weight_path(node.input[0])
        if node.op_type not in _WEIGHTED:
            return None
        for name in node.input[:2]:
            if name in self.constants and (path := weight_path(name)):
                return path
            if (key := self.keys.get(name, "")).startswith("weight "):
                return key.removeprefix("weight ")
        return None

    def _before(self, node: NodeProto) -> str:
        if node.op_type == "DequantizeLinear" and len(node.input) > 1 and (path := weight_path(node.input[1])):
            return path.removesuffix(".scale")
        modules = [self.last_module[name] for name in node.input if self.last_module.get(name)]
        return f"after {modules[0]}" if modules else ""

    def _key(self, node: NodeProto, output: int, path: str | None) -> str:
        if node.op_type in SAME_NUMBERS:
            return f"weight {path}" if path else self._input_key(node.input[0])
        name = node.output[output]
        if name in self.affine_keys:
            return self.affine_keys.pop(name)
        if path:
            key = self._numbered(_digest(node.op_type, path, self._size(name)))
            if name not in self.affine:
                return key
            self.affine_keys[self.affine[name]] = key
            self.with_affine.add(path)
            return f"{key} without its gain"
        inputs = [self._input_key(name) for name in node.input if name]
        if node.op_type in _COMMUTES:
            inputs.sort()
        axes = [str(onnx.helper.get_attribute_value(a)) for a in node.attribute if a.name in ("axis", "perm")]
        return self._numbered(_digest(node.op_type, *axes, *inputs, str(output)))

    def _numbered(self, key: str) -> str:
        """`key`, with a number from its second use on: equal operations on equal inputs differ by their order."""
        self.times[key] += 1
        return key if self.times[key] == 1 else f"{key}/{self.times[key]}"

    def _input_key(self, name: str) -> str:
        if name in self.keys:
            return self.keys[name]
        constant = self.constants.get(name)
        if constant is None:
            return "outer"
        if path := weight_path(name):
            return f"weight {path}"
        if constant.data_type in _FLOATS:  # its value depends on the precision
            return "number"
        return _digest(str(numpy_helper.to_array(constant).tolist()))

    def _size(self, name: str) -> str:
        """Height and width of a tensor as text, "" where they are unknown."""
        if name not in self.types or not self.types[name].HasField("shape"):
            return ""
        return str([d.dim_value for d in self.types[name].shape.dim][2:])


def aligned(candidate: ModelProto, reference: ModelProto) -> list[tuple[Tensor, str]]:
    """Tensors of `candidate` in order, each with the name of the matching tensor in `reference`; others are left out.

    A weight that `candidate` dequantizes is matched with the initializer of `reference`.
    """
    names: dict[str, str] = {}
    reader = _Reader(reference)
    for tensor in reader.read():
        if tensor.comparable:
            names.setdefault(tensor.key, tensor.name)
    for name in initializers(reference):
        if (path := weight_path(name)) and path not in reader.with_affine:
            names.setdefault(f"weight {path}", name)
    for i, value in enumerate(reference.graph.input):
        names.setdefault(_digest("input", str(i)), value.name)
    return [(tensor, names[tensor.key]) for tensor in tensors(candidate) if tensor.comparable and tensor.key in names]


def different_weights(candidate: ModelProto, reference: ModelProto, above: float) -> dict[str, float]:
    """Float weights of `candidate` that differ from those of `reference`: by path, a relative difference > `above`."""
    errors: dict[str, float] = {}
    weights = {path: t for name, t in initializers(reference).items() if (path := weight_path(name))}
    for name, tensor in initializers(candidate).items():
        path = weight_path(name)
        if path not in weights or tensor.data_type not in _FLOATS:
            continue
        a, b = (numpy_helper.to_array(t).astype(np.float64) for t in (tensor, weights[path]))
        if a.shape == b.shape and (error := relative_error(a, b)) > above:
            errors[path] = error
    return errors


def relative_error(values: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the difference over that of `expected`; infinite if one of `values` is not finite."""
    a, b = values.astype(np.float64), expected.astype(np.float64)
    if not np.isfinite(a).all():
        return float("inf")
    scale = float(np.sqrt(np.mean(b * b))) if b.size else 0.0
    difference = float(np.sqrt(np.mean((a - b) ** 2))) if b.size else 0.0
    return difference / max(scale, 1e-6)


def _digest(*parts: str) -> str:
    return hashlib.sha1("|".join(parts).encode(), usedforsecurity=False).hexdigest()[:16]
