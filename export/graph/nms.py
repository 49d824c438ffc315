"""The forms of NMS that a graph can have. All give the same detections for the same candidates.

auto      a node EfficientNMS_TRT and a function of that name with the portable NMS as its body: TensorRT uses its
plugin,
          other backends use the body
portable  iterated suppression, 16 rounds (`models.deploy.nms`)
loop      iterated suppression in a Loop until nothing changes: always exact
onnx      ONNX's NonMaxSuppression
plugin    a node EfficientNMS_TRT without a body, for TensorRT only
none      the graph gives candidates, and the runtime does NMS
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import onnx
import onnx.inliner
import onnx.parser
import torch
from onnx import FunctionProto, ModelProto, helper
from torch import Tensor, nn

from export.graph.tracing import trace
from export.options import ExportError, NmsKind
from models.config.model import PostprocessConfig
from models.deploy.graph import Deploy
from models.deploy.nms import PortableNms, best, float32_above, float32_below, suppression

PLUGIN = "EfficientNMS_TRT"
PLUGIN_DOMAIN = "trt.plugins"
_OWN_DOMAIN = "isodet"
_DENSE_BELOW = 0.007
"""Under this threshold the plugin sorts all scores instead of those above it, and fills free slots with boxes that it
should have dropped, at scores of -32768 (EfficientNMSFilterLauncher and EfficientNMSDenseIndex in TensorRT's
efficientNMSInference.cu)."""


def why_no_plugin(post: PostprocessConfig) -> str:
    """Why TensorRT's plugin would give other detections than this model; "" where it gives the same."""
    if post.threshold_on == "class":
        return (
            "the plugin compares its threshold with the score that it sorts by, this model with the class probability "
            "alone (postprocess.threshold_on: class)"
        )
    if post.score_threshold < _DENSE_BELOW:
        return (
            f"below a score threshold of {_DENSE_BELOW} the plugin gives back what it should drop "
            f"(postprocess.score_threshold is {post.score_threshold:g})"
        )
    return ""


def nms_module(
    kind: NmsKind, post: PostprocessConfig, classes: int, certificate: bool = False, half: bool = False
) -> nn.Module:
    """The `nms` of a `Deploy` to trace for `kind`; not for `auto` or `plugin` where `why_no_plugin` gives a reason.

    half: matrix products in float16, which TensorRT-RTX needs on Turing GPUs (`PortableNms`).
    """
    dtype = torch.float16 if half else torch.float32
    modules: dict[NmsKind, Callable[[], nn.Module]] = {
        "auto": lambda: PluginNms(post, classes),
        "portable": lambda: PortableNms(post.nms_iou, post.detections, certificate, dtype),
        "loop": lambda: LoopNms(post, dtype),
        "onnx": lambda: OnnxNms(post, classes),
        "plugin": lambda: PluginNms(post, classes),
        "none": NoNms,
    }
    return modules[kind]()


class PluginNms(nn.Module):
    """TensorRT's plugin. It keeps what is at or above a threshold, isodet what is above: it gets the next float32."""

    def __init__(self, post: PostprocessConfig, classes: int):
        super().__init__()
        self.post, self.classes = post, classes
        self.attributes: dict[str, Any] = {
            "score_threshold": float32_after(post.score_threshold), "iou_threshold": float32_above(post.nms_iou),
            "background_class": -1, "score_activation": 0, "class_agnostic": 0,
            "box_coding": 0, "plugin_version": "1", "plugin_namespace": "",
        }  # fmt: skip

    def forward(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        batch, kept = scores.shape[0], min(self.post.detections, scores.shape[1])
        outputs = torch.onnx.ops.symbolic_multi_out(
            f"{PLUGIN_DOMAIN}::{PLUGIN}",
            (boxes, by_class(scores, labels, self.classes)),
            {**self.attributes, "max_output_boxes": kept},
            dtypes=(torch.int32, torch.float32, torch.float32, torch.int32),
            shapes=((batch, 1), (batch, kept, 4), (batch, kept), (batch, kept)),
            version=1,
        )
        return tuple(outputs)


class PluginBody(nn.Module):
    """The plugin in standard operators: boxes [B, K, 4], scores [B, K, C] -> its four outputs.

    Each candidate has a score at one class, and 0 at the others.
    """

    def __init__(self, nms: PortableNms):
        super().__init__()
        self.nms = nms

    def forward(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        score, label = scores.max(dim=-1)
        return self.nms(boxes, score, label)


class LoopNms(nn.Module):
    """`PortableNms` with as many rounds as are needed."""

    def __init__(self, post: PostprocessConfig, dtype: torch.dtype):
        super().__init__()
        self.post, self.dtype = post, dtype

    def forward(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        suppresses = suppression(boxes, labels, self.post.nms_iou).to(self.dtype)
        kept = torch.onnx.ops.symbolic(
            f"{_OWN_DOMAIN}::KeepUntilStable",
            (torch.ones_like(suppresses[:, :1]), suppresses),
            dtype=self.dtype,
            shape=(scores.shape[0], 1, scores.shape[1]),
            version=1,
        )
        return best(kept[:, 0] > 0.5, boxes, scores, labels, self.post.detections)


class OnnxNms(nn.Module):
    """ONNX's NonMaxSuppression on ranks instead of scores, because its order of equal scores is undefined."""

    def __init__(self, post: PostprocessConfig, classes: int):
        super().__init__()
        self.post, self.classes = post, classes

    def forward(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        ranks = torch.arange(scores.shape[1], 0, -1, dtype=torch.float32)
        ranks = by_class(torch.where(scores > 0, ranks, 0.0), labels, self.classes)
        kept = torch.onnx.ops.symbolic(
            f"{_OWN_DOMAIN}::Select",
            (boxes, ranks.transpose(1, 2), torch.zeros_like(scores)),
            dtype=torch.float32,
            shape=scores.shape,
            version=1,
        )
        return best(kept > 0.5, boxes, scores, labels, self.post.detections)


class NoNms(nn.Module):
    """No NMS: the candidates' boxes, scores (0: no candidate) and labels int32."""

    def forward(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        return boxes, scores, labels.int()


def by_class(scores: Tensor, labels: Tensor, classes: int) -> Tensor:
    """[B, K, C]: each candidate's score at its class, zero at the others."""
    return scores[..., None] * (labels[..., None] == torch.arange(classes))


def float32_after(threshold: float) -> float:
    """For a float32 score, `score >= float32_after(t)` is `score > t` as PyTorch and ONNX compute it."""
    return float32_above(float(torch.tensor(threshold, dtype=torch.float32)))


# ---------------------------------------------------------------------------------------------
# functions


def add_functions(model: ModelProto, kind: NmsKind, deploy: Deploy, half: bool) -> ModelProto:
    """`model`, which was traced from `deploy` with `nms_module(kind)`, in a form that ONNX Runtime can run.

    For `auto` and `plugin` it gets the plugin's body as a function; the other forms are plain operators.
    """
    post = deploy.config.postprocess
    opset = next(i.version for i in model.opset_import if i.domain in ("", "ai.onnx"))
    if kind in ("auto", "plugin"):
        function = _plugin_body(model, deploy, opset, half)
    elif kind == "loop":
        function = onnx.parser.parse_function(_KEEP_UNTIL_STABLE % {"opset": opset})
    elif kind == "onnx":
        values = {"opset": opset, "kept": post.detections, "iou": f"{float32_below(post.nms_iou):.9g}"}
        function = onnx.parser.parse_function(_SELECT % values)
    else:
        return model
    model.functions.append(function)
    if kind in ("auto", "plugin"):
        return model
    inlined = onnx.inliner.inline_local_functions(model)
    kept = [i for i in inlined.opset_import if i.domain != _OWN_DOMAIN]
    del inlined.opset_import[:]
    inlined.opset_import.extend(kept)
    return inlined


def without_functions(model: ModelProto) -> ModelProto:
    """A copy of `model` without functions, which only a backend with the plugin can run."""
    stripped = ModelProto()
    stripped.CopyFrom(model)
    del stripped.functions[:]
    return stripped


def _plugin_body(model: ModelProto, deploy: Deploy, opset: int, half: bool) -> FunctionProto:
    post, classes = deploy.config.postprocess, len(deploy.config.classes)
    node = next(n for n in model.graph.node if n.op_type == PLUGIN)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    fixed = batch.dim_value if batch.HasField("dim_value") else None
    attributes = tuple(a.name for a in node.attribute)
    return _body(post.nms_iou, post.detections, half, (deploy.candidate_count, classes), fixed, opset, attributes)


@functools.lru_cache(maxsize=16)
def _body(
    iou: float, detections: int, half: bool, size: tuple[int, int], fixed: int | None, opset: int,
    attributes: tuple[str, ...],
) -> FunctionProto:  # fmt: skip
    """The plugin's body, cached because tracing takes seconds. It has no weights. size: candidates and classes."""
    count, classes = size
    nms = PortableNms(iou, detections, dtype=torch.float16 if half else torch.float32)
    example = (torch.zeros(fixed or 2, count, 4), torch.zeros(fixed or 2, count, classes))
    names = ["num_dets", "boxes_kept", "scores_kept", "labels_kept"]
    body = trace(PluginBody(nms).eval(), example, opset, fixed is not None, ["boxes", "scores"], names)
    return as_function(body, PLUGIN, PLUGIN_DOMAIN, list(attributes))


def as_function(model: ModelProto, name: str, domain: str, attributes: list[str]) -> FunctionProto:
    """A model's graph as a local function. A prefix keeps names of its values and nodes apart from the main graph's."""
    graph = model.graph

    def prefixed(value: str) -> str:
        return f"nms_{value}" if value else value

    nodes = []
    for tensor in graph.initializer:
        tensor.name, value = "", prefixed(tensor.name)
        nodes.append(helper.make_node("Constant", [], [value], value=tensor))
    for node in graph.node:
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
            raise ExportError(f"{node.op_type}: a graph within the body of {name} would need its names changed, too")
        node.input[:] = [prefixed(value) for value in node.input]
        node.output[:] = [prefixed(value) for value in node.output]
        node.name = prefixed(node.name)  # TensorRT warns of nodes of equal names
        del node.metadata_props[:]
        nodes.append(node)
    return helper.make_function(
        domain, name, [prefixed(i.name) for i in graph.input], [prefixed(o.name) for o in graph.output], nodes,
        [i for i in model.opset_import if i.domain in ("", "ai.onnx")], attributes,
    )  # fmt: skip


_KEEP_UNTIL_STABLE = """
<opset_import: ["" : %(opset)d], domain: "isodet">
KeepUntilStable (start, suppresses) => (kept)
{
  rounds = Constant <value: tensor = int64 {9223372036854775807}> ()
  yes = Constant <value: tensor = bool {1}> ()
  kept = Loop (rounds, yes, start) <body: graph = stable_rounds (int64 number, bool go, now) => (bool more, last) {
      first_hits = MatMul (now, suppresses)
      first = HardSigmoid <alpha: float = -1.0, beta: float = 1.0> (first_hits)
      last_hits = MatMul (first, suppresses)
      last = HardSigmoid <alpha: float = -1.0, beta: float = 1.0> (last_hits)
      moved = Sub (last, first)
      moves = ReduceMax <keepdims: int = 0> (moved)
      more = Cast <to: int = 9> (moves)
    }>
}
"""

_SELECT = """
<opset_import: ["" : %(opset)d], domain: "isodet">
Select (boxes, ranks, nothing) => (kept)
{
  most = Constant <value_ints: ints = [%(kept)d]> ()
  iou = Constant <value_floats: floats = [%(iou)s]> ()
  lowest = Constant <value_floats: floats = [0.0]> ()
  picked = NonMaxSuppression (boxes, ranks, most, iou, lowest)
  columns = Constant <value_ints: ints = [0, 2]> ()
  image_and_candidate = Gather <axis: int = 1> (picked, columns)
  count = Shape <start: int = 0, end: int = 1> (picked)
  ones = ConstantOfShape <value: tensor = float[1] {1}> (count)
  kept = ScatterND (nothing, image_and_candidate, ones)
}
"""
