"""The exported graph: its contract, its equality with PyTorch, and that it is written whole or not at all."""

from __future__ import annotations

import functools
import itertools
import json
import shutil
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import export
import export.graph.form
from export.options import ExportError
from export.verification.detection_diff import compare_detections
from models.checkpoint import CheckpointError, read_checkpoint, save_checkpoint
from models.layers.blocks import ConvNorm
from models.layers.fuse import FuseError
from runtime import Detector, read_card, read_image
from tests.at_fault import raises
from tests.export.damaged import boxes_moved
from tests.export.networks import assert_same, untrained


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., export.OnnxExport]:
    """The default export of such a checkpoint, w.pt beside it; made once."""

    @functools.cache
    def make(detector: str = "atss", backbone: str = "resnet18") -> export.OnnxExport:
        return export.to_onnx(untrained(tmp_path_factory.mktemp(f"{detector}-{backbone}") / "w.pt", detector, backbone))

    return make


@pytest.mark.parametrize(
    ("detector", "backbone"),
    [*itertools.product(["atss", "retinanet", "fcos"], ["resnet18", "resnet50", "repvgg_a0"]),
     ("gfl", "resnet18"), ("gflv2", "resnet18"), ("tood", "resnet18")],
)  # fmt: skip
def test_eager_equals_onnx_for_any_batch(detector, backbone, exported):
    path = exported(detector, backbone).path
    assert path.name == "w.onnx"
    assert_same(path.with_suffix(".pt"), path, (1, 2, 5))


def test_the_contract_of_the_graph(exported):
    path = exported().path
    model = onnx.load(path)
    nodes = [node.name for graph in (model.graph, *model.functions) for node in graph.node if node.name]
    assert len(nodes) == len(set(nodes)) > 0  # TensorRT warns of each name that comes twice

    def io(values: object) -> dict[str, tuple[str, list[object]]]:
        types = {v.name: v.type.tensor_type for v in values}
        return {name: (onnx.TensorProto.DataType.Name(t.elem_type), [d.dim_param or d.dim_value for d in t.shape.dim])
                for name, t in types.items()}  # fmt: skip

    (batch,) = {v[1][0] for v in io(model.graph.input).values()}
    assert isinstance(batch, str)  # dynamic
    assert io(model.graph.input) == {"images": ("UINT8", [batch, 96, 128, 3])}
    assert io(model.graph.output) == {
        "num_dets": ("INT32", [batch, 1]), "boxes": ("FLOAT", [batch, 25, 4]),
        "scores": ("FLOAT", [batch, 25]), "labels": ("INT32", [batch, 25]),
    }  # fmt: skip
    (body,) = model.functions  # what backends without TensorRT's plugin run
    operators = {n.op_type for n in (*model.graph.node, *body.node)}
    assert not operators & {"BatchNormalization", "Loop", "If", "Scan", "NonMaxSuppression"}
    assert [n.op_type for n in model.graph.node if n.domain] == ["EfficientNMS_TRT"] == [body.name]
    assert {n.domain for n in body.node} == {""}
    card = json.loads({p.key: p.value for p in model.metadata_props}["isodet"])
    assert card["kind"] == "onnx" and card["batch"] == "dynamic" and card["verification"]["scored"] is False

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).integers(0, 256, (3, 96, 128, 3), dtype=np.uint8)
    counts, boxes, scores, labels = session.run(None, {"images": images})
    for n, b, s, c in zip(counts[:, 0], boxes, scores, labels, strict=True):
        assert (np.diff(s) <= 0).all() and (s[:n] > 0.05).all()
        assert not s[n:].any() and not b[n:].any() and not c[n:].any()
        assert (b[:n] >= 0).all() and (b[:n, [0, 2]] <= 128).all() and (b[:n, [1, 3]] <= 96).all()


def test_a_fixed_batch_runs_any_number_of_frames(tmp_path):
    result = export.to_onnx(untrained(tmp_path / "w.pt"), options=export.OnnxOptions(batch=4))
    assert read_card(result.path).batch == 4
    frames = [np.full((50, 70, 3), v, np.uint8) for v in (0, 90, 255, 30, 60, 10)]
    fixed = Detector(result.path, threshold=0.0)(frames)
    free = Detector(tmp_path / "w.pt", threshold=0.0)(frames)
    assert compare_detections(dict(enumerate(free)), dict(enumerate(fixed))).unmatched == 0


def test_simplify_shrinks_the_graph_and_not_the_result(tmp_path, exported):
    slim = exported()
    options = export.OnnxOptions(simplify=False)
    plain = export.to_onnx(slim.path.with_suffix(".pt"), tmp_path / "plain.onnx", options)
    assert slim.nodes <= plain.nodes
    assert slim.megabytes <= plain.megabytes * 1.02
    frame = np.random.default_rng(1).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    a, b = (Detector(r.path, threshold=0.0)(frame) for r in (plain, slim))
    assert compare_detections({0: a[0]}, {0: b[0]}).box_max_px < 1e-3


def test_what_is_not_a_checkpoint(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"not a checkpoint")
    with raises(CheckpointError, path=tmp_path / "w.pt"):
        export.to_onnx(tmp_path / "w.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["w.pt"]


def test_a_fold_that_changes_the_output_is_refused(tmp_path, monkeypatch):
    path = untrained(tmp_path / "w.pt")
    real = ConvNorm.fuse

    def forgets_the_bias(block: ConvNorm) -> torch.nn.Module:
        real(block)
        if block.conv.bias is not None:  # folded, unlike a GroupNorm
            block.conv.bias.data += 0.01
        return block

    monkeypatch.setattr(ConvNorm, "fuse", forgets_the_bias)
    with pytest.raises(FuseError, match="folding changed the network's output"):
        export.to_onnx(path)
    assert [p.name for p in tmp_path.iterdir()] == ["w.pt"]


def test_damaged_statistics_are_refused(tmp_path):
    """A variance below zero makes every output NaN, which is never within a tolerance."""
    path = untrained(tmp_path / "w.pt")
    content = read_checkpoint(path)
    content["model"]["backbone.bn1.running_var"].fill_(-1)
    save_checkpoint(path, content["model"], content["card"])
    with pytest.raises(FuseError, match=r"folding changed the network's output by nan"):
        export.to_onnx(path)
    assert [p.name for p in tmp_path.iterdir()] == ["w.pt"]


@pytest.mark.parametrize(
    "step", ["graph.form._trace", "graph.form.simplified", "onnx_export._run_check", "onnx_export.pass_gate"]
)
def test_a_failure_at_any_step_keeps_the_old_artifact(shapes_run, tmp_path, monkeypatch, step):
    for name in ("best.pt", "best.onnx"):
        shutil.copy(shapes_run / name, tmp_path)
    before = (tmp_path / "best.onnx").read_bytes()

    def broken(*_: object) -> None:
        raise ExportError("injected")

    monkeypatch.setattr(f"export.{step}", broken)
    with pytest.raises(ExportError, match="injected"):
        export.to_onnx(tmp_path / "best.pt")
    assert (tmp_path / "best.onnx").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.onnx", "best.pt"]


def test_a_graph_that_scores_less_is_not_written(shapes_run, tmp_path, monkeypatch):
    """The exported boxes are shifted on purpose, by less than the running check sees but enough to lose mAP."""
    shutil.copy(shapes_run / "best.pt", tmp_path)
    real = export.graph.form.simplified

    monkeypatch.setattr("export.graph.form.simplified", lambda model: boxes_moved(real(model), 4.0))
    monkeypatch.setattr("export.onnx_export._run_check", lambda *_: None)
    with pytest.raises(ExportError, match=r"loses .* mAP points .* more than 0\.1; nothing was written"):
        export.to_onnx(tmp_path / "best.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["best.pt"]
    monkeypatch.undo()
    monkeypatch.setattr("export.graph.form.simplified", lambda model: boxes_moved(real(model), 4.0))
    with pytest.raises(ExportError, match="ONNX Runtime does not give PyTorch's detections"):
        export.to_onnx(tmp_path / "best.pt")


def test_verification_names_what_is_missing(shapes_run, tmp_path):
    shutil.copy(shapes_run / "best.onnx", tmp_path)
    with raises(export.VerifyError, path=tmp_path / "best.onnx"):
        export.verify([tmp_path / "best.onnx"])
    with pytest.raises(export.VerifyError, match="no artifact"):
        export.verify([])
    with raises(export.VerifyError, key="tolerance"):
        export.verify([tmp_path / "best.onnx"], tolerance=-1)
    with raises(export.VerifyError, path=tmp_path / "best.onnx"):
        export.verify([shapes_run / "best.pt"], against=tmp_path / "best.onnx")


def test_a_real_picture_gives_the_same_boxes_through_every_door(shapes_run):
    picture = sorted((shapes_run.parent.parent / "data" / "val").glob("*.jpg"))[3]
    torch_boxes, onnx_boxes = (Detector(shapes_run / name)(read_image(picture))[0] for name in ("best.pt", "best.onnx"))
    assert len(torch_boxes) and torch_boxes.names == onnx_boxes.names
    assert np.abs(torch_boxes.boxes_xyxy - onnx_boxes.boxes_xyxy).max() < 0.05
