"""Which tensor of one graph is which tensor of another: by the names of weights, that every form of a network keeps.

Names of tensors change with precision, simplifier and exporter. What stays is the path of each weight
(`detector.backbone.conv1.weight`; 8-bit: `detector.graph.backbone.conv1.steps_0`) and the operations between weights.
A tensor is therefore known by a key: a convolution's by its weight and the size of its output, because levels share
weights; any other's by its operation and the keys of what it reads. A node that only changes how numbers are written
(Cast, QuantizeLinear, DequantizeLinear) hands its input's key on: its output is to be the same numbers. A constant
gain and shift behind a convolution, as pyramid levels have, belong to it: 8 bits have them in the scale of the weight.
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
    """A tensor that a node of a graph writes."""

    name: str
    key: str
    node: str
    op: str
    module: str
    """Path in the PyTorch network; of a node without a weight, that of the last weight before it, after "after"."""
    inputs: tuple[str, ...]
    """Names of what the node reads."""
    ordered: bool
    """False behind a TopK: the same numbers may stand in another order."""
    weight: str | None
    """Path of the weight, for a convolution; and for the DequantizeLinear that makes one."""
    comparable: bool
    """Float: integers are indices, or 8-bit steps whose meaning is in the node that reads them."""


def weight_path(name: str) -> str | None:
    """The path of a weight in the network by the name of an ONNX initializer; None for a constant of the exporter."""
    for prefix in ("detector.", "graph."):
        name = name.removeprefix(prefix)
    for suffix in ("_quantized", "_DequantizeLinear_Output", "_fp16"):
        name = name.removesuffix(suffix)
    if "." not in name:
        return None
    return re.sub(r"\.steps(_\d+)?$", ".weight", name)


def tensors(model: ModelProto) -> list[Tensor]:
    """What the nodes of `model` write, in their order."""
    return list(_Reader(model).read())


def initializers(model: ModelProto) -> dict[str, TensorProto]:
    """The constants of a graph by name, those of Constant nodes among them."""
    found = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            found.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    return found


class _Reader:
    """One pass over a graph, front to back."""

    def __init__(self, model: ModelProto):
        self.model = model
        self.constants = initializers(model)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        values = (*inferred.value_info, *inferred.output, *inferred.input)
        self.types = {v.name: v.type.tensor_type for v in values}
        self.keys = {v.name: _digest("input", str(i)) for i, v in enumerate(model.graph.input)}
        self.last_module = {v.name: "" for v in model.graph.input}
        self.times: Counter[str] = Counter()
        self.affine = dict(self._affines())  # the output of a convolution, and of the gain and shift behind it
        self.complete: dict[str, str] = {}  # the keys of the latter
        self.gained: set[str] = set()
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
            last = behind = node.output[0]
            wanted = ["Mul", "Add"]
            while len(found := readers.get(behind, [])) == 1 and (wanted or found[0].op_type in SAME_NUMBERS):
                behind = found[0].output[0]
                if found[0].op_type in SAME_NUMBERS:
                    continue
                if found[0].op_type not in wanted or not any(name in self.constants for name in found[0].input):
                    break
                wanted = wanted[wanted.index(found[0].op_type) + 1 :]
                last = behind
            if last != node.output[0]:
                yield node.output[0], last

    def _weight(self, node: NodeProto) -> str | None:
        """The path of the weight that `node` multiplies with, or rewrites."""
        if node.op_type in SAME_NUMBERS and node.input[0] in self.constants:
            return weight_path(node.input[0])
        if node.op_type not in _WEIGHTED:
            return None
        for name in node.input[:2]:
            if name in self.constants and (path := weight_path(name)):
                return path
            if (known := self.keys.get(name, "")).startswith("weight "):
                return known.removeprefix("weight ")
        return None

    def _before(self, node: NodeProto) -> str:
        if node.op_type == "DequantizeLinear" and len(node.input) > 1 and (path := weight_path(node.input[1])):
            return path.removesuffix(".scale")
        seen = [self.last_module[name] for name in node.input if self.last_module.get(name)]
        return f"after {seen[0]}" if seen else ""

    def _key(self, node: NodeProto, output: int, path: str | None) -> str:
        if node.op_type in SAME_NUMBERS:
            return f"weight {path}" if path else self._input_key(node.input[0])
        if node.output[output] in self.complete:
            return self.complete.pop(node.output[output])
        if path:
            key = self._numbered(_digest(node.op_type, path, self._size(node.output[output])))
            if node.output[output] not in self.affine:
                return key
            self.complete[self.affine[node.output[output]]] = key
            self.gained.add(path)
            return f"{key} without its gain"
        read = [self._input_key(name) for name in node.input if name]
        if node.op_type in _COMMUTES:
            read.sort()
        axes = [str(onnx.helper.get_attribute_value(a)) for a in node.attribute if a.name in ("axis", "perm")]
        return self._numbered(_digest(node.op_type, *axes, *read, str(output)))

    def _numbered(self, key: str) -> str:
        """Equal operations on equal inputs are told apart by their order."""
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
        if constant.data_type in _FLOATS:  # its last digits depend on the precision
            return "number"
        return _digest(str(numpy_helper.to_array(constant).tolist()))

    def _size(self, name: str) -> str:
        """Height and width of a tensor, as far as they are known."""
        if name not in self.types or not self.types[name].HasField("shape"):
            return ""
        return str([d.dim_value for d in self.types[name].shape.dim][2:])


def aligned(candidate: ModelProto, reference: ModelProto) -> list[tuple[Tensor, str]]:
    """Tensors of `candidate` in order, each with the name of the same tensor in `reference`; the others are left out.

    A weight that `candidate` writes out of integers stands beside the initializer of `reference`.
    """
    theirs: dict[str, str] = {}
    reader = _Reader(reference)
    for tensor in reader.read():
        if tensor.comparable:
            theirs.setdefault(tensor.key, tensor.name)
    for name in initializers(reference):
        if (path := weight_path(name)) and path not in reader.gained:
            theirs.setdefault(f"weight {path}", name)
    for i, value in enumerate(reference.graph.input):
        theirs.setdefault(_digest("input", str(i)), value.name)
    return [(tensor, theirs[tensor.key]) for tensor in tensors(candidate) if tensor.comparable and tensor.key in theirs]


def different_weights(candidate: ModelProto, reference: ModelProto, above: float) -> dict[str, float]:
    """Float weights of `candidate` that are not those of `reference`: the relative difference by path."""
    found: dict[str, float] = {}
    theirs = {path: t for name, t in initializers(reference).items() if (path := weight_path(name))}
    for name, tensor in initializers(candidate).items():
        path = weight_path(name)
        if path not in theirs or tensor.data_type not in _FLOATS:
            continue
        a, b = (numpy_helper.to_array(t).astype(np.float64) for t in (tensor, theirs[path]))
        if a.shape == b.shape and (error := relative_error(a, b)) > above:
            found[path] = error
    return found


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Root of the mean squared difference, over that of what was expected; infinite where numbers are not finite."""
    a, b = found.astype(np.float64), expected.astype(np.float64)
    if not np.isfinite(a).all():
        return float("inf")
    scale = float(np.sqrt(np.mean(b * b))) if b.size else 0.0
    difference = float(np.sqrt(np.mean((a - b) ** 2))) if b.size else 0.0
    return difference / max(scale, 1e-6)


def _digest(*parts: str) -> str:
    return hashlib.sha1("|".join(parts).encode(), usedforsecurity=False).hexdigest()[:16]
