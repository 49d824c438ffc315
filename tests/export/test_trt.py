"""Engines of the real TensorRT-RTX, which builds without a GPU: what builds, what is refused, what is written.

Nothing here is run: no engine of a test, and no claim of this file, has seen a GPU.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import export
from export.__main__ import main
from export.engine.build import build
from export.options import ExportError, Gate, OnnxOptions
from models.checkpoint import read_checkpoint, save_checkpoint
from models.config.model import model_config
from models.detector import Detector as Network
from models.quant import quantize
from runtime import Detector, read_card
from runtime.backends.cuda.devices import cuda_device_count
from runtime.backends.protocol import BackendError
from runtime.backends.trt.library import Library
from runtime.card.card import CardError
from runtime.card.sidecar import sidecar_path
from tests.at_fault import raises
from tests.export.networks import save_network
from tests.processes import python
from trainer.recipes.shapes import make_shapes

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'isodet[rtx]'")
LIBRARY = Library("rtx", trt)
RTX = export.EngineOptions(engine="rtx", batch=(1, 2, 4), sm=(86,))
UNSCORED = Gate(verify=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A checkpoint of random weights of a detector, in float or as after QAT; made once."""
    folder = tmp_path_factory.mktemp("networks")

    def make(detector: str, quantized: bool = False) -> Path:
        path = folder / f"{detector}{'.int8' if quantized else ''}.pt"
        if path.exists():
            return path
        torch.manual_seed(3)
        network = Network(model_config({
            "classes": ["circle", "square", "triangle"], "detector": detector, "input_size_hw": [64, 64],
            "backbone": {"name": "resnet18", "width": 0.125}, "neck": {"channels": 32, "levels": [3, 5], "norm": "bn"},
            "head": {"depth": 1, "prior": 0.2}, "postprocess": {"candidates": 30, "detections": 10},
        })).eval()  # fmt: skip
        if quantized:
            network = quantize(network)
            network.calibrate([torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)])
        save_network(path, network)
        if quantized:
            content = read_checkpoint(path)
            save_checkpoint(path, content["model"], {**content["card"], "quantization": {"kind": "qat"}})
        return path

    return make


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[..., Path]) -> Callable[..., Path]:
    """An ONNX file of such a checkpoint; made once."""
    folder = tmp_path_factory.mktemp("graphs")

    def make(detector: str, precision: Any, nms: Any) -> Path:
        path = folder / f"{detector}.{precision}.{nms}.onnx"
        if not path.exists():
            source = checkpoint(detector, precision == "int8")
            export.to_onnx(source, path, OnnxOptions(nms=nms, precision=precision), UNSCORED)
        return path

    return make


FIRST = [("atss", "fp32", "auto"), ("retinanet", "fp16", "loop")]  # what the other tests here take


@pytest.mark.parametrize(
    ("detector", "precision", "nms"),
    [*itertools.product(["atss", "retinanet", "fcos"], ["fp32", "fp16", "int8"], ["auto", "portable", "loop", "none"]),
     ("gfl", "fp32", "auto"), ("gfl", "fp16", "portable"), ("gfl", "int8", "none"),
     ("gflv2", "fp16", "auto"), ("gflv2", "int8", "portable"), ("tood", "fp16", "auto")],
)  # fmt: skip
def test_every_detector_builds_in_every_precision_with_every_nms(graph, detector, precision, nms):
    """The forms that RTX has operators for; what it says of the others is below."""
    path = graph(detector, precision, nms)
    plan = build(LIBRARY, path, RTX)
    assert plan.content[:4] == b"vtrt" and plan.profile == (1, 2, 4) and not plan.plugin
    left = 0.2 if detector.startswith("gfl") else 0.15  # predictions stay in float, and a distribution has more of them
    assert export.audit_file(path).share(precision) == pytest.approx(1.0, abs=left if precision == "int8" else 1e-9)


def test_what_rtx_has_no_operator_for(tmp_path, graph):
    """A graph whose NMS is the plugin alone, and ONNX's NonMaxSuppression."""
    model = onnx.load(graph(*FIRST[0]))
    del model.functions[:]
    onnx.save(model, tmp_path / "plugin.onnx")
    with pytest.raises(ExportError, match="which TensorRT-RTX .* does not have; export it again with --nms auto"):
        export.to_engine(tmp_path / "plugin.onnx", options=replace(RTX, check_hashes=False), gate=UNSCORED)
    boxes = helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["n", 8, 4])
    kept = helper.make_tensor_value_info("kept", TensorProto.INT64, ["k", 3])
    constants = {"scores": np.ones((1, 1, 8), np.float32), "most": np.array([4], np.int64)}
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores", "most"], ["kept"])
    graph_of_it = helper.make_graph([node], "g", [boxes], [kept], weights)
    onnx.save(helper.make_model(graph_of_it, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "nms.onnx")
    with raises(ExportError, path=tmp_path / "nms.onnx"):
        build(LIBRARY, tmp_path / "nms.onnx", RTX)


def test_the_transaction(tmp_path, graph):
    """Built, not scored: the card says so, and what the sidecar says is what the engine is."""
    source = graph(*FIRST[1])
    out = tmp_path / "new" / "cam.engine"
    steps: list[str] = []
    result = export.to_engine(source, out, RTX, UNSCORED, progress=lambda what, done, total: steps.append(what))
    assert sorted(path.name for path in out.parent.iterdir()) == ["cam.engine", "cam.engine.json"]
    card = read_card(out)
    assert card == result.card and card.precision == "fp16" and card.batch == "dynamic"
    assert card.engine["profile"] == [1, 2, 4] and card.engine["sm"] == [86] and card.engine["gpu"] == ""
    assert card.engine["rebuild"] == f"exporter trt {source.name} --engine rtx --batch 1,2,4 --sm 86"
    assert result.audit == export.audit_file(out, "cpu") or result.audit.share("fp16") == 1.0
    assert any(step.startswith("build: ") for step in steps)
    if card.verification.get("scored") is False:
        assert "built, not scored" in card.verification["why"] or "not asked for" in card.verification["why"]
    assert "passed" not in card.verification and card.metrics == {}
    assert result.trtexec == f"tensorrt_rtx --loadEngine={out} --shapes=images:2x64x64x3"


def test_a_checkpoint_is_exported_on_the_way(tmp_path, checkpoint, capsys):
    make_shapes(tmp_path / "data", train_images=1, val_images=2, size_hw=(64, 64))
    source = tmp_path / "run" / "best.pt"
    source.parent.mkdir()
    source.write_bytes(checkpoint("fcos", quantized=True).read_bytes())
    data = ["--annotations", str(tmp_path / "data" / "val.json"), "--images", str(tmp_path / "data" / "val")]
    options = ["--int8", "--nms", "none", "--engine", "rtx", "--batch", "2", *data, "--quiet"]
    assert main(["trt", str(source), *options]) == 0
    names = sorted(path.name for path in source.parent.iterdir())
    assert names == ["best.int8.engine", "best.int8.engine.json", "best.pt"]
    card = read_card(source.parent / "best.int8.engine")
    if not card.verification["scored"]:  # no GPU
        assert f"its graph was scored: {card.verification['graph']['map']:.2f} mAP" in capsys.readouterr().out
    assert card.engine["profile"] == [2, 2, 2] and card.nms["kind"] == "none"
    assert card.engine["rebuild"] == "exporter trt best.pt --int8 --nms none --engine rtx --batch 2,2,2"
    audit = export.audit_file(source.parent / "best.int8.engine", "cpu")
    assert audit.missed() == () and audit.table().startswith("convolution FLOPs: INT8 ")


def test_nms_that_an_engine_cannot_have_is_refused_before_the_work(tmp_path, graph, checkpoint, monkeypatch):
    monkeypatch.setattr("export.engine_export.to_onnx", lambda *_: pytest.fail("the work was begun"))
    for kind in ("plugin", "onnx"):
        with raises(ExportError, key="nms"):
            export.to_engine(checkpoint("atss"), tmp_path / "a.engine", RTX, UNSCORED, OnnxOptions(nms=kind))
    with raises(ExportError, key="nms"):
        export.to_engine(graph(*FIRST[0]), tmp_path / "a.engine", RTX, UNSCORED, OnnxOptions(nms="loop"))


def test_an_engine_where_it_cannot_run(tmp_path, graph):
    path = export.to_engine(graph(*FIRST[1]), tmp_path / "a.engine", RTX, UNSCORED).path
    if cuda_device_count() == 0:
        with pytest.raises(BackendError, match="built for TensorRT-RTX .* on SM86.*there is no CUDA device here"):
            Detector(path)
    other = export.to_engine(graph(*FIRST[0]), tmp_path / "b.engine", RTX, UNSCORED).path
    sidecar_path(path).replace(sidecar_path(other))
    with raises(CardError, path=other):
        Detector(other)


def test_ctrl_c_leaves_the_old_engine(tmp_path, graph):
    """The signal comes while the library works, where an exception of Python's would end the process."""
    out = tmp_path / "a.engine"
    out.write_bytes(b"old")

    def interrupt(what: str, done: int, total: int) -> None:
        if what.startswith("build: "):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        export.to_engine(graph(*FIRST[1]), out, RTX, UNSCORED, progress=interrupt)
    assert out.read_bytes() == b"old" and [path.name for path in tmp_path.iterdir()] == ["a.engine"]


@pytest.mark.parametrize("damage", ["cut", "foreign", "no graph"])
def test_files_that_are_no_graph_of_ours(tmp_path, graph, damage):
    content = graph(*FIRST[1]).read_bytes()
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "foreign":
        model = onnx.load_from_string(content)
        del model.metadata_props[:]
        content = model.SerializeToString()
    else:
        content = b"GIF89a" + content
    (tmp_path / "x.onnx").write_bytes(content)
    messages = {"cut": "not a whole ONNX file", "foreign": "without an isodet card", "no graph": "neither an ONNX file"}
    with pytest.raises(CardError, match=messages[damage]):
        export.to_engine(tmp_path / "x.onnx", options=RTX)
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]


def test_an_unreadable_operator_is_named(tmp_path, graph):
    model = onnx.load(graph(*FIRST[0]))
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.op_type, node.name = "NoSuchOperator", "node_of_nobody"
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(ExportError, match=r"TensorRT-RTX .* cannot read it: .*node_of_nobody.*NoSuchOperator"):
        build(LIBRARY, tmp_path / "x.onnx", RTX)


_CREATOR = """
import json, os, sys
import numpy as np
import tensorrt_rtx as trt

class Creator(trt.IPluginCreatorV3One):
    def __init__(self):
        trt.IPluginCreatorV3One.__init__(self)
        self.name, self.plugin_version, self.plugin_namespace = "EfficientNMS_TRT", "1", ""
        names = {"score_threshold": "FLOAT32", "iou_threshold": "FLOAT32", "max_output_boxes": "INT32",
                 "background_class": "INT32", "score_activation": "INT32", "class_agnostic": "INT32",
                 "box_coding": "INT32"}
        self.field_names = trt.PluginFieldCollection(
            [trt.PluginField(n, np.array([]), getattr(trt.PluginFieldType, k)) for n, k in names.items()])

    def create_plugin(self, name, fields, phase):
        print(json.dumps({f.name: [f.type.name, f.data.tolist()] for f in fields}), flush=True)
        os._exit(0)  # RTX has no such plugin and would end the process with an error

logger = trt.Logger(trt.Logger.ERROR)
creator = Creator()
assert trt.get_plugin_registry().register_creator(creator, "")
builder = trt.Builder(logger)
network = builder.create_network(0)
trt.OnnxParser(network, logger).parse_from_file(sys.argv[1])
sys.exit("no plugin was asked for")
"""


def test_a_parser_that_has_the_plugin_gives_it_all_of_its_fields(graph):
    """It is preferred to the function of the same name that the file brings."""
    path = graph(*FIRST[0])
    done = python("-c", _CREATOR, path)
    assert done.returncode == 0, done.stderr
    fields = json.loads(done.stdout.splitlines()[-1])
    card = read_card(path)
    assert {name: kind for name, (kind, _) in fields.items()} == {
        "score_threshold": "FLOAT32", "iou_threshold": "FLOAT32", "max_output_boxes": "INT32",
        "background_class": "INT32", "score_activation": "INT32", "class_agnostic": "INT32", "box_coding": "INT32",
    }  # fmt: skip
    assert fields["score_threshold"][1] == [pytest.approx(card.score_threshold, rel=1e-6)]
    assert fields["iou_threshold"][1] == [pytest.approx(card.nms["iou"], rel=1e-6)]
    assert fields["max_output_boxes"][1] == [10] and fields["background_class"][1] == [-1]
