"""Every form of NMS, in ONNX Runtime, against per-class NMS of torchvision, on the same candidates."""

from __future__ import annotations

import dataclasses
import functools
from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from export.graph.nms import PLUGIN, add_functions, as_function, nms_module, why_no_plugin, without_functions
from export.graph.plan import nms_kind
from export.graph.tracing import check_weights, trace
from export.options import ExportError, NmsKind, OnnxOptions
from models.config.model import PostprocessConfig
from models.deploy.nms import float32_above, float32_below
from runtime.backends.protocol import RawOutputs
from runtime.suppression import suppress

K, D, C, THRESHOLD = 24, 10, 3, 0.45
POST = PostprocessConfig(candidates=K, detections=D, nms_iou=THRESHOLD, score_threshold=0.05)


@dataclasses.dataclass(frozen=True)
class Config:
    """What `add_functions` reads of a `Deploy`."""

    postprocess: PostprocessConfig
    classes: tuple[str, ...]


class Stage(nn.Module):
    """NMS alone, from candidates as graph inputs."""

    candidate_count = K
    config = Config(POST, ("a", "b", "c"))

    def __init__(self, nms: nn.Module):
        super().__init__()
        self.nms = nms

    def forward(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        # An operator before: where an input is an output itself, as in `none`, torch 2.8 gives it another name.
        return self.nms(boxes.clamp(min=-1e6), scores.clamp(min=0), labels.clamp(min=0))


@functools.cache
def built(kind: NmsKind, half: bool = False, certificate: bool = False) -> onnx.ModelProto:
    names = ["boxes_out", "scores_out", "labels_out"]
    names = names if kind == "none" else ["num_dets", *names]
    stage = Stage(nms_module(kind, POST, C, certificate, half)).eval()
    inputs = (torch.zeros(2, K, 4), torch.zeros(2, K), torch.zeros(2, K, dtype=torch.int64))
    names += ["nms_exact"] if certificate else []
    model = trace(stage, inputs, 20, False, ["boxes", "scores", "labels"], names)
    return add_functions(model, kind, stage, half)


@pytest.fixture(scope="module")
def forms() -> dict[str, onnxruntime.InferenceSession]:
    """Sessions by name; the plugin's is that of its stand-in, which is `auto`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    models = {kind: built(kind) for kind in get_args(NmsKind) if kind not in ("plugin", "portable")}
    models |= {"portable": built("portable", certificate=True), "half": built("portable", half=True)}
    for model in models.values():
        onnx.checker.check_model(model, full_check=True)
    return {
        name: onnxruntime.InferenceSession(m.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for name, m in models.items()
    }  # fmt: skip


def reference(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> list[int]:
    """Indices of the detections of one image, best first."""
    kept: list[int] = []
    for label in range(C):
        # Ranks instead of scores: torchvision's order of equal scores is its own.
        index = np.flatnonzero((labels == label) & (scores > 0))
        ranks = torch.arange(len(index), 0, -1, dtype=torch.float32)
        kept += index[torchvision.ops.nms(torch.from_numpy(boxes[index]), ranks, THRESHOLD).numpy()].tolist()
    return sorted(kept)[:D]


def candidates(seed: int, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """boxes [2, K, 4], falling scores [2, K], labels [2, K]; the second image has few candidates, or none."""
    rng = np.random.default_rng(seed)
    if kind == "chain":  # each overlaps only its neighbors
        x = np.tile(np.arange(K) * 10.0, (2, 1))
        boxes, labels = np.stack([x, 0 * x, x + 30, 0 * x + 10], axis=-1), np.zeros((2, K), np.int64)
    else:  # whole pixels: equal, touching and empty boxes, and equal ratios, happen
        corners = rng.integers(0, 30, (2, K, 2))
        boxes = np.concatenate([corners, corners + rng.integers(0, 16, (2, K, 2))], axis=-1)
        labels = rng.integers(0, C, (2, K))
    levels = 5 if kind == "equal scores" else 10**6
    scores = -np.sort(-rng.integers(1, levels, (2, K)) / levels, axis=1)
    scores = np.maximum(scores, 0.06)
    scores[1, rng.integers(0, K + 1) :] = 0
    boxes = boxes.astype(np.float32)
    # As `Deploy.admitted` does: what is empty is no candidate, wherever it stands.
    scores = scores * ((boxes[..., 2:] > boxes[..., :2]).all(-1))
    return boxes, scores.astype(np.float32), labels.astype(np.int64)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["scattered", "scattered", "equal scores", "chain"]))
@example(0, "chain")
@settings(max_examples=60, deadline=None)
def test_every_form_gives_the_detections_of_greedy_nms(forms, seed, kind):
    boxes, scores, labels = candidates(seed, kind)
    for name, session in forms.items():
        out = session.run(None, {"boxes": boxes, "scores": scores, "labels": labels})
        if name == "none":
            out = suppress(RawOutputs(None, *out), THRESHOLD, D)
        count, found, values, classes = out[:4]
        sure = out[4][:, 0] if name == "portable" else [True, True]
        for i in range(2):
            if not sure[i]:  # said, not silently wrong; chains of K need more rounds than there are
                assert kind == "chain"
                continue
            if kind == "chain" and name in ("half", "auto"):  # 16 rounds as well, and no certificate
                continue
            kept = reference(boxes[i], scores[i], labels[i])
            n = int(count[i, 0])
            assert n == len(kept), name
            assert (found[i, :n] == boxes[i, kept]).all() and (values[i, :n] == scores[i, kept]).all(), name
            assert (classes[i, :n] == labels[i, kept]).all() and classes.dtype == np.int32, name
            assert not found[i, n:].any() and not values[i, n:].any() and not classes[i, n:].any(), name


def test_the_certificate_is_withheld_from_a_chain_that_is_longer_than_the_rounds(forms):
    boxes, scores, labels = candidates(0, "chain")
    scores[:] = np.linspace(0.9, 0.1, K, dtype=np.float32)
    exact = forms["portable"].run(["nms_exact"], {"boxes": boxes, "scores": scores, "labels": labels})[0]
    assert exact.shape == (2, 1) and exact.dtype == bool and not exact.any()
    labels[:] = np.arange(K) % C  # neighbors of other classes: no chain
    assert forms["portable"].run(["nms_exact"], {"boxes": boxes, "scores": scores, "labels": labels})[0].all()


def test_the_plugins_node_says_what_its_body_does():
    """NVIDIA's kernel keeps scores at or above its threshold and drops overlaps at or above the other."""
    model = built("auto")  # of which a plugin's file has the node only
    (node,) = [n for n in model.graph.node if n.op_type == PLUGIN]
    assert node.domain == "trt.plugins"
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    above = np.nextafter(np.float32(0.05), np.float32(1))
    assert given["score_threshold"] == above and given["iou_threshold"] == float32_above(THRESHOLD)
    assert (given["max_output_boxes"], given["background_class"], given["score_activation"]) == (D, -1, 0)
    assert (given["class_agnostic"], given["box_coding"]) == (0, 0)
    assert (given["plugin_version"], given["plugin_namespace"]) == (b"1", b"")
    (function,) = model.functions
    assert (function.domain, function.name) == (node.domain, node.op_type)
    assert set(function.attribute) == set(given)
    alone = without_functions(model)
    onnx.checker.check_model(alone, full_check=True)
    assert not alone.functions and model.functions
    with pytest.raises(Exception, match="EfficientNMS_TRT"):
        onnxruntime.InferenceSession(alone.SerializeToString(), providers=["CPUExecutionProvider"])


@given(st.floats(0.001, 1.0))
def test_at_or_above_the_next_float_is_above_the_threshold(threshold):
    below, above = np.float32(float32_below(threshold)), np.float32(float32_above(threshold))
    assert float(below) <= threshold < float(above)
    for iou in (below, above, np.nextafter(below, np.float32(0)), np.nextafter(above, np.float32(2))):
        assert (iou > below) == (iou >= above) == (float(iou) > threshold)


@pytest.mark.parametrize(
    ("change", "reason"), [({"score_threshold": 0.001}, "0.007"), ({"threshold_on": "class"}, "class probability")]
)
def test_where_the_plugin_would_find_something_else_it_is_not_used(change, reason):
    post = dataclasses.replace(POST, **change)
    assert reason in why_no_plugin(post)
    said: list[str] = []
    assert nms_kind(OnnxOptions(), post, said.append) == "portable" and reason in said[0]
    assert nms_kind(OnnxOptions(nms="loop"), post, said.append) == "loop"
    with pytest.raises(ExportError, match=reason):
        nms_kind(OnnxOptions(nms="plugin"), post, said.append)
    assert nms_kind(OnnxOptions(), POST, said.append) == "auto" and len(said) == 1


def test_weights_that_are_in_a_file_twice_are_refused():
    weight = np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)
    same = [onnx.numpy_helper.from_array(weight, name) for name in ("a", "b")]
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], same))
    with pytest.raises(ExportError, match="the weights a twice, again as b"):
        check_weights(model)
    del model.graph.initializer[1]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros_like(weight), "zeros"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros_like(weight), "other_zeros"))
    check_weights(model)
    for wrong in (np.nan, np.inf, -np.inf):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float16([1, wrong]), "broken"))
        with pytest.raises(ExportError, match="the weight broken of the graph holds NaN or infinite numbers"):
            check_weights(model)
        del model.graph.initializer[-1]


def test_a_body_with_a_graph_inside_is_refused():
    looped = onnx.ModelProto()
    looped.CopyFrom(built("loop"))
    with pytest.raises(ExportError, match="Loop: a graph within the body"):
        as_function(looped, "name", "domain", [])


@pytest.mark.parametrize(
    ("kind", "half", "sm"),
    [("auto", False, "SM86"), ("auto", True, "SM75"), ("loop", False, "SM86"), ("none", False, "SM86")],
)
def test_rtx_builds(kind, half, sm):
    """`auto` from the function's body, since RTX has no plugins; with half products on Turing, too."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is an extra: isodet[rtx]")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(built(kind, half).SerializeToString()), parser.get_error(0).desc()
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, sm), 0)
    profile = builder.create_optimization_profile()
    for name, shape in {"boxes": (K, 4), "scores": (K,), "labels": (K,)}.items():
        profile.set_shape(name, (1, *shape), (2, *shape), (4, *shape))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None
