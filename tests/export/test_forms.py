"""Whole files in other forms than the default: they find the same, their cards say what they are, and bad ones go."""

from __future__ import annotations

import os

import cv2
import numpy as np
import onnx
import pytest
import torch

import export
from export.options import ExportError
from export.verification.detection_diff import compare_detections
from models.checkpoint import CheckpointError, build_detector, load_detector
from models.deploy.graph import Deploy
from models.layers.fuse import FuseError
from runtime import Detector, read_card, read_image
from runtime.backends.load import load_backend
from runtime.backends.protocol import BackendError
from tests.at_fault import raises
from tests.export.networks import untrained


def test_candidates_in_half_from_raw_float_frames(shapes_run, tmp_path):
    """Everything at once that is not the default: the runtime feeds it, suppresses, and gives the same boxes."""
    checkpoint = shapes_run / "best.pt"  # trained: random weights put boxes on the very edges of thresholds
    files = sorted((shapes_run.parent.parent / "data" / "val").glob("*.jpg"))[:8]
    frames = [cv2.resize(read_image(file), (171, 153)) for file in files]
    said: list[str] = []
    options = export.OnnxOptions(nms="none", precision="fp16", source_size_hw=(153, 171), input="float-nchw")
    result = export.to_onnx(checkpoint, tmp_path / "x.onnx", options, say=said.append)
    card, trained = read_card(result.path), read_card(checkpoint)
    assert (card.nms["kind"], card.precision, card.source_size_hw) == ("none", "fp16", (153, 171))
    assert (card.input, card.color, card.input_size_hw) == ("float-nchw", "rgb", trained.input_size_hw)
    assert card.verification["passed"]  # against PyTorch behind the same letterbox, on pictures of another size
    before, after = next((float(w[1]), float(w[6])) for w in map(str.split, said) if w[0] == "float16:")
    assert after == pytest.approx(before / 2, rel=0.1) and result.weights_megabytes < before * 0.6

    graph = onnx.load(result.path).graph
    io = {v.name: v.type.tensor_type for v in (*graph.input, *graph.output)}
    floats = {name: io[name].elem_type == onnx.TensorProto.FLOAT for name in io}
    assert floats == {"images": True, "boxes": True, "scores": True, "labels": False}  # float32 outside
    assert [d.dim_value for d in io["images"].shape.dim][1:] == [3, 153, 171]
    assert [d.dim_value for d in io["boxes"].shape.dim][1:] == [trained.nms["candidates"], 4]
    kinds = {t.data_type for t in graph.initializer if len(t.dims) == 4}
    assert kinds == {onnx.TensorProto.FLOAT16}

    expected, found = (Detector(p, device="cpu", threshold=0.1)(frames) for p in (checkpoint, result.path))
    apart = compare_detections(dict(enumerate(expected)), dict(enumerate(found)))
    assert apart.boxes > 10 and apart.unmatched <= apart.boxes // 10
    assert apart.box_mean_px < 0.3 and apart.score_mean < 3e-3
    other = Detector(result.path, threshold=0.1)(np.zeros((50, 40, 3), np.uint8))[0]  # of another size
    assert (other.boxes_xyxy[:, 2] <= 40).all() and (other.boxes_xyxy[:, 3] <= 50).all()


def test_a_file_for_the_plugin_alone(tmp_path):
    result = export.to_onnx(untrained(tmp_path / "w.pt"), options=export.OnnxOptions(nms="plugin", batch=2))
    model = onnx.load(result.path)
    assert not model.functions and "EfficientNMS_TRT" in {n.op_type for n in model.graph.node}
    card = read_card(result.path)
    assert card.nms["kind"] == "plugin" and "plugin's body" in card.verification["stand_in"]
    with pytest.raises(BackendError, match=r"TensorRT's plugin EfficientNMS_TRT.*--nms auto"):
        load_backend(result.path)


def test_a_network_that_float16_cannot_hold(tmp_path):
    detector, _ = build_detector(untrained(tmp_path / "w.pt"))
    detector.head.cls.weight.data.view(-1)[0] = 1e5
    with pytest.raises(ValueError, match=r"head\.cls\.weight holds values above 65504"):
        Deploy(detector).halve()


def test_training_forms_and_state_dicts_are_refused(tmp_path):
    checkpoint = untrained(tmp_path / "w.pt")
    detector, _ = build_detector(checkpoint)
    with pytest.raises(FuseError, match=r"eval mode"):
        Deploy(detector.train())
    deploy, _ = load_detector(checkpoint)
    torch.save({"model": deploy.state_dict()}, tmp_path / "state.pt")
    with raises(CheckpointError, path=tmp_path / "state.pt"):
        export.to_onnx(tmp_path / "state.pt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state.pt", "w.pt"]


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"opset": 9}, "opset"),
        ({"batch": 0}, "batch"),
        ({"nms": "soft"}, "nms"),
        ({"precision": "fp8"}, "precision"),
        ({"input": "nv12"}, "input"),
        ({"source_size_hw": (0, 640)}, "source-size"),
        ({"certificate": True}, "certificate"),
    ],
)
def test_options_that_no_graph_has(options, key):
    with raises(ExportError, key=key):
        export.OnnxOptions(**options)


@pytest.mark.parametrize(
    ("options", "out", "message"),
    [
        ({"precision": "int8"}, "x.onnx", "names no training data to calibrate on"),
        ({"source_size_hw": (2000, 10)}, "x.onnx", "becomes a line"),
        ({}, "folder", "is a folder"),
        ({}, "w.pt/x.onnx", "cannot be written"),
        pytest.param(
            {}, "locked/x.onnx", "cannot be written", marks=pytest.mark.skipif(os.getuid() == 0, reason="root may")
        ),
    ],
)
def test_what_cannot_be_is_told_before_the_long_work(
    tmp_path, options, out, message, monkeypatch):  # fmt: skip
    checkpoint = untrained(tmp_path / "w.pt")
    (tmp_path / "folder").mkdir()
    (tmp_path / "locked").mkdir(mode=0o500)
    before = sorted(tmp_path.rglob("*"))

    def too_late(*_: object) -> None:
        raise AssertionError("the long work has begun")

    monkeypatch.setattr("export.onnx_export.assert_fused", too_late)
    monkeypatch.setattr("export.graph.form._trace", too_late)
    with pytest.raises((ExportError, OSError), match=message):
        export.to_onnx(checkpoint, tmp_path / out, export.OnnxOptions(**options))
    assert sorted(tmp_path.rglob("*")) == before
