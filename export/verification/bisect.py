"""`exporter bisect`: the first layer of an artifact whose output is not the network's.

The checkpoint is exported again, in float32 and with and without the simplifier, and both graphs run on one real
picture. Every tensor that both have (`export.verification.tensor_matching`) is compared, in the order of the artifact's
nodes. ONNX Runtime runs with its optimizations off, so that it computes exactly the nodes of the file.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import ModelProto, NodeProto, numpy_helper

from export.audit.audit import load_graph
from export.graph.form import float_forms
from export.verification.tensor_matching import (
    Tensor,
    aligned,
    different_weights,
    initializers,
    relative_error,
    tensors,
)
from export.verification.verify import find_checkpoint
from isodet.errors import IsodetError
from models.checkpoint import build_detector
from models.quant import FakeQuant, QuantConv2d
from runtime.artifact import read_card
from runtime.backends.ort.library import load_onnxruntime
from runtime.backends.protocol import graph_input
from runtime.card.card import Card
from runtime.files.text_table import text_table
from runtime.images.image import Image, ImageError, letterbox, read_image
from runtime.runs import validation_data

DEPARTS = {"fp32": 1e-3, "fp16": 3e-2, "int8": 0.3}
"""By precision: the relative error (root mean square) above which a tensor departs from the network's. It is several
times the error in correct graphs of trained detectors."""
_OTHER_WEIGHT = {"fp32": 1e-5, "fp16": 2e-3, "int8": 1e-5}  # rounding to float16 is 3e-4; int8 keeps float biases
_AT_ONCE = 96  # tensors that are in memory at the same time


class BisectError(IsodetError, RuntimeError):
    """Two graphs that cannot be compared; the message says why."""


@dataclass(frozen=True)
class Layer:
    """One tensor of the artifact, compared with the network's.

    module: path in the PyTorch network, "" where it is unknown. error: root of the mean squared difference, divided by
    the root mean square of the network's tensor. added: `error` minus the largest error among the node's inputs.
    """

    node: str
    op: str
    module: str
    error: float
    added: float

    def to_json(self) -> dict[str, Any]:
        return {key: _json_number(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Bisection:
    """The comparison of an artifact with the network that it was made from.

    threshold: relative error above which a tensor departs. compared: how many tensors of the artifact the network has
    too. tensors: how many float tensors the artifact has. first: the first that departs, in the order of the graph, or
    None. jumps: those that add most error, the largest first. weights: paths of float weights that differ from the
    checkpoint's, with the relative difference, the largest first.
    """

    artifact: Path
    threshold: float
    compared: int
    tensors: int
    first: Layer | None
    jumps: tuple[Layer, ...]
    weights: tuple[tuple[str, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "artifact": str(self.artifact),
            "threshold": self.threshold,
            "compared": self.compared,
            "tensors": self.tensors,
            "first": None if self.first is None else self.first.to_json(),
            "jumps": [layer.to_json() for layer in self.jumps],
            "other_weights": [{"path": path, "error": _json_number(error)} for path, error in self.weights],
        }

    def text(self) -> str:
        """A sentence about the first layer that departs, and a table of the largest jumps."""
        lines = []
        if self.first is None:
            lines.append(
                f"{self.artifact.name}: no layer departs: {self.compared} of {self.tensors} tensors are within "
                f"{self.threshold:g} of the network's; what is lost is lost in many small steps, or after the network"
            )
        else:
            f = self.first
            lines.append(
                f"{self.artifact.name}: the first layer that departs is {f.op} {f.node} ({f.module or 'at the input'}):"
                f" relative error {f.error:.3g}, more than {self.threshold:g}"
            )
        for path, error in self.weights[:3]:
            lines.append(f"its weight {path} is not the checkpoint's: relative difference {error:.3g}")
        if len(self.weights) > 3:
            lines.append(f"and {len(self.weights) - 3} more weights are not")
        if self.jumps:
            lines.append(f"largest jumps, of {self.compared} tensors that were compared:")
            rows = [[j.node, j.op, f"{j.error:.2g}", f"{j.added:.2g}", j.module] for j in self.jumps]
            head = ["layer", "operator", "error", "added", "module"]
            lines += [f"  {line}" for line in text_table(head, rows, left={"layer", "operator", "module"})]
        return "\n".join(lines)


def bisect(artifact: str | Path, against: str | Path | None = None, image: str | Path | None = None) -> Bisection:
    """Compare the ONNX file `artifact`, tensor by tensor, with the network of its checkpoint in float32.

    against: the checkpoint; None: the one beside the artifact. image: the picture to run both on; None: the first
    readable one of the checkpoint's validation data. Raises `BisectError`, `CardError`, `CheckpointError`,
    `VerifyError`, `RunsError`, `ImageError` or, without ONNX Runtime, `BackendError`.
    """
    artifact = Path(artifact)
    card = read_card(artifact)
    if card.kind != "onnx":
        kind = "an engine, whose tensors nobody sees" if card.kind == "engine" else "a checkpoint"
        raise BisectError.at(artifact, f"is {kind}; bisect the ONNX file that an engine was built from")
    load_onnxruntime()  # before the long work
    checkpoint = Path(against) if against is not None else find_checkpoint(artifact)
    picture = _validation_picture(read_card(checkpoint), checkpoint) if image is None else read_image(image)
    frame, _ = letterbox(picture, card.frame_hw)  # the raw frame, for a graph that contains the letterbox
    batch = 1 if card.batch == "dynamic" else int(card.batch)
    images = graph_input(card, np.repeat(frame[None], batch, axis=0))
    return compare(artifact, load_graph(artifact), float_graphs(checkpoint, card), (images, images), card.precision)


def float_graphs(checkpoint: Path, card: Card) -> tuple[ModelProto, ModelProto]:
    """The network of a checkpoint as float32 graphs, as traced and simplified; fake quantization is disabled.

    card: the artifact's; the graphs get the same input and NMS.
    """
    detector, _ = build_detector(checkpoint)
    for module in detector.modules():
        if isinstance(module, (FakeQuant, QuantConv2d)):
            module.enabled = False
    return float_forms(detector, card)


def _validation_picture(card: Card, checkpoint: Path) -> Image:
    dataset = validation_data(card, checkpoint)
    for record in dataset.records:
        with contextlib.suppress(ImageError):
            return read_image(record.path)
    raise BisectError.at(dataset.annotations, "none of its pictures can be read; name one with --image FILE")


def compare(
    artifact: Path,
    candidate: ModelProto,
    references: Sequence[ModelProto],
    inputs: Sequence[np.ndarray],
    precision: str,
    jumps: int = 6,
) -> Bisection:
    """Compare `candidate`, the graph of `artifact`, with the one of the float32 graphs `references` that matches best.

    inputs: the picture in the form of `candidate`'s input, and of the references'. Raises `BisectError`.
    """
    candidate = runnable(candidate)
    pairs, reference = max(((aligned(candidate, r), r) for r in map(runnable, references)), key=lambda p: len(p[0]))
    if precision != "fp32":  # rounding may select other candidates, so tensors behind the TopK are not comparable
        pairs = [(tensor, name) for tensor, name in pairs if tensor.ordered]
    if not any(tensor.weight for tensor, _ in pairs):
        raise BisectError.at(artifact, "it has no layer in common with the checkpoint; is it the one it came from?")
    candidate_tensors = tensors(candidate)
    errors = _errors(candidate, reference, pairs, inputs)
    propagated: dict[str, float] = {}  # errors by tensor; one that was not compared has its inputs' largest
    layers = []
    for tensor in candidate_tensors:
        before = max((propagated.get(name, 0.0) for name in tensor.inputs), default=0.0)
        error = propagated[tensor.name] = errors.get(tensor.name, before)
        if tensor.name in errors:
            added = error - before if np.isfinite(before) else 0.0
            layers.append(Layer(tensor.node, tensor.op, tensor.module, error, added))
    threshold = DEPARTS[precision]
    ranked = sorted(layers, key=lambda layer: -layer.added)
    weights = different_weights(candidate, reference, _OTHER_WEIGHT[precision])
    return Bisection(
        artifact,
        threshold,
        len(layers),
        sum(tensor.comparable for tensor in candidate_tensors),
        next((layer for layer in layers if not layer.error <= threshold), None),
        tuple(layer for layer in ranked[:jumps] if layer.added > 0),
        tuple(sorted(weights.items(), key=lambda item: -item[1])),
    )


def runnable(model: ModelProto) -> ModelProto:
    """A copy of `model` with its functions inlined, and without nodes of other engines and what depends on them."""
    model = onnx.inliner.inline_local_functions(model)
    missing: set[str] = set()
    kept: list[NodeProto] = []
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or missing.intersection(node.input):
            missing.update(node.output)
        else:
            kept.append(node)
    outputs = [value for value in model.graph.output if value.name not in missing]
    del model.graph.node[:], model.graph.output[:]
    model.graph.node.extend(kept)
    model.graph.output.extend(outputs)
    return model


def _errors(
    candidate: ModelProto, reference: ModelProto, pairs: Sequence[tuple[Tensor, str]], inputs: Sequence[np.ndarray]
) -> dict[str, float]:
    """Relative error by the name of the candidate's tensor; pairs of different sizes are left out."""
    constants = {name: numpy_helper.to_array(t) for name, t in initializers(reference).items()}
    constants |= {value.name: inputs[1] for value in reference.graph.input}
    errors: dict[str, float] = {}
    candidate_session = _Session(candidate, [tensor.name for tensor, _ in pairs])
    reference_session = _Session(reference, [name for _, name in pairs if name not in constants])
    for start in range(0, len(pairs), _AT_ONCE):
        part = pairs[start : start + _AT_ONCE]
        values = candidate_session.run(inputs[0], [tensor.name for tensor, _ in part])
        expected = reference_session.run(inputs[1], [name for _, name in part if name not in constants]) | constants
        for tensor, name in part:
            a, b = values[tensor.name], expected[name]
            if a.size != b.size:
                continue
            if not tensor.ordered:
                a, b = np.sort(a, axis=None), np.sort(b, axis=None)
            errors[tensor.name] = relative_error(a.reshape(-1), b.reshape(-1))
    return errors


class _Session:
    """A graph in ONNX Runtime of which the tensors `names` can be read."""

    def __init__(self, model: ModelProto, names: Sequence[str]):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        outputs = {value.name for value in copy.graph.output}
        copy.graph.output.extend(onnx.ValueInfoProto(name=n) for n in dict.fromkeys(names) if n not in outputs)
        onnxruntime = load_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self.session = onnxruntime.InferenceSession(
                copy.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors have no common base but Exception
            raise BisectError(f"ONNX Runtime cannot run the graph layer by layer: {error}") from error

    def run(self, image: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        outputs = list(dict.fromkeys(names))
        if not outputs:
            return {}
        try:
            values = self.session.run(outputs, {self.session.get_inputs()[0].name: image})
        except Exception as error:
            raise BisectError(f"ONNX Runtime failed while it ran the graph layer by layer: {error}") from error
        return dict(zip(outputs, values, strict=True))


def _json_number(value: Any) -> Any:
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)
