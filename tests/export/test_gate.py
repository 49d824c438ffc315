"""What the gate reads, holds and says, and what is refused before the long work."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import export.graph.form
from export.engine.options import EngineOptions
from export.engine_export import _graph_options, to_engine
from export.int8.quantize import quantized
from export.options import CalibrationError, ExportError, Gate, Int8, OnnxOptions
from export.verification.gate import GateError
from models.checkpoint import build_detector
from runtime import Card, read_card, read_dataset
from runtime.datasets.annotations import CocoDataset
from runtime.images.image import read_image
from tests.at_fault import raises
from tests.export.damaged import boxes_moved


@pytest.fixture
def val(shapes_run: Path) -> CocoDataset:
    data = shapes_run.parents[1] / "data"
    return read_dataset(data / "val.json", data / "val")


@pytest.fixture
def yolo(shapes_run: Path, val: CocoDataset, tmp_path: Path) -> Path:
    """The run's validation data in YOLO's form: a data.yaml that names its own pictures."""
    names = read_card(shapes_run / "best.pt").classes
    for folder in ("images", "labels"):
        (tmp_path / "yolo" / folder / "val").mkdir(parents=True)
    for record in val.records[:6]:
        shutil.copy(record.path, tmp_path / "yolo" / "images" / "val")
        lines = []
        for label, (x1, y1, x2, y2) in zip(record.labels, record.boxes_xyxy, strict=True):
            center = ((x1 + x2) / 2 / record.width, (y1 + y2) / 2 / record.height)
            size = ((x2 - x1) / record.width, (y2 - y1) / record.height)
            lines.append(" ".join(map(str, (label, *center, *size))))
        (tmp_path / "yolo" / "labels" / "val" / f"{record.path.stem}.txt").write_text("\n".join(lines))
    path = tmp_path / "yolo" / "data.yaml"
    path.write_text(f"path: .\ntrain: images/val\nval: images/val\nnames: {list(names)}\n")
    return path


def test_an_export_is_scored_on_yolo_data(shapes_run, yolo, tmp_path):
    result = export.to_onnx(shapes_run / "best.pt", tmp_path / "a.onnx", gate=Gate(annotations=yolo))
    assert result.verification is not None and result.verification.dataset.annotations == yolo
    assert result.card.verification["passed"] is True and len(result.verification.dataset.records) == 6


def test_a_gate_that_proves_nothing_says_so(shapes_run, val, tmp_path):
    """Boxes where nothing is: the checkpoint scores nothing, and nothing can be lost."""
    size = read_image(val.records[0].path).shape
    shutil.copy(val.records[0].path, tmp_path / "0.jpg")
    corner = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0}
    names = read_card(shapes_run / "best.pt").classes
    content = {
        "images": [{"id": 0, "file_name": "0.jpg", "height": size[0], "width": size[1]}], "annotations": [corner],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(names)],
    }  # fmt: skip
    (tmp_path / "none.json").write_text(json.dumps(content))
    files = [shapes_run / "best.onnx"], shapes_run / "best.pt"
    verification = export.verify(*files, tmp_path / "none.json", tmp_path, device="cpu")
    assert verification.reference.evaluation.map == 0
    assert "here the gate proves nothing" in verification.table()


def test_what_keep_map_promises_holds_for_the_artifact():
    assert Gate().for_int8(Int8(keep_map=0.5)).tolerance == 0.5
    assert Gate(tolerance=0.2).for_int8(Int8(keep_map=0.5)).tolerance == 0.2
    assert Gate().for_int8(Int8()) == Gate() == Gate().for_int8(None)
    for wrong in (float("inf"), float("nan"), -1.0):
        with raises(ExportError, key="tolerance"):
            Gate(tolerance=wrong)
        with raises(CalibrationError, key="keep-mAP"):
            Int8(keep_map=wrong)


def test_no_choice_is_made_on_data_without_boxes(shapes_run, val):
    empty = [replace(r, boxes_xyxy=r.boxes_xyxy[:0], labels=r.labels[:0], crowd=r.crowd[:0]) for r in val.records]
    detector, card_json = build_detector(shapes_run / "best.pt")
    card = Card.from_json(card_json, shapes_run / "best.pt")
    for options in (Int8(calibrate="best"), Int8(keep_map=0.5)):
        with pytest.raises(CalibrationError, match=r"has no box in any picture"):
            quantized(detector, card, shapes_run / "best.pt", options, replace(val, records=empty))


def test_a_source_is_not_overwritten(shapes_run, tmp_path, monkeypatch):
    shutil.copy(shapes_run / "best.pt", tmp_path)
    shutil.copy(shapes_run / "best.onnx", tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.chdir(tmp_path)
    with raises(ExportError, path=tmp_path / "best.pt"):
        export.to_onnx("best.pt", tmp_path / "best.pt")
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'isodet[rtx]'")
    with raises(ExportError, path=tmp_path / "best.onnx"):
        to_engine("best.onnx", tmp_path / "best.onnx", EngineOptions(engine="rtx"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_engine_takes_the_options_of_its_graph_or_refuses_them(shapes_run, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'isodet[rtx]'")
    rtx, source = EngineOptions(engine="rtx"), shapes_run / "best.onnx"
    with pytest.raises(ExportError, match="is fp32, and fp16 was asked for"):
        to_engine(source, tmp_path / "a.engine", rtx, onnx_options=OnnxOptions(precision="fp16"))
    with pytest.raises(ExportError, match="is a graph already"):
        to_engine(source, tmp_path / "a.engine", rtx, onnx_options=OnnxOptions(opset=19))
    card = read_card(shapes_run / "best.pt")
    trained = _graph_options(OnnxOptions(), rtx, replace(card, quantization={"kind": "qat"}))
    assert trained.precision == "int8" and trained.int8 == Int8(half=True)
    assert _graph_options(OnnxOptions(), rtx, card) == OnnxOptions()


def test_the_report_of_a_refused_graph_lies_where_the_engine_would_be(shapes_run, tmp_path, monkeypatch):
    """A graph that lost everything on the way to an engine."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'isodet[rtx]'")
    real = export.graph.form.simplified

    monkeypatch.setattr("export.graph.form.simplified", lambda model: boxes_moved(real(model), 40.0))
    monkeypatch.setattr("export.onnx_export._run_check", lambda *_: None)
    shutil.copy(shapes_run / "best.pt", tmp_path)
    with pytest.raises(GateError) as refused:
        to_engine(tmp_path / "best.pt", options=EngineOptions(engine="rtx"))
    assert refused.value.verification.artifacts[0].path == tmp_path / "best.onnx"
    if refused.value.bisection is not None:
        assert refused.value.bisection.artifact == tmp_path / "best.onnx"
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]


def test_files_in_each_others_places_are_told_apart(shapes_run, tmp_path):
    with raises(ExportError, path=shapes_run / "best.onnx"):
        export.to_onnx(shapes_run / "best.onnx", tmp_path / "a.onnx")
    with raises(ExportError, path=tmp_path / "a.txt"):
        export.to_onnx(shapes_run / "best.pt", tmp_path / "a.txt")
    with raises(export.VerifyError, path=shapes_run / "best.pt"):
        export.verify([shapes_run / "best.pt"])
    assert not list(tmp_path.iterdir())
