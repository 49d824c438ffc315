"""OpenVINO in the gate, the audit and the choice of an engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import export
from export.__main__ import main as exporter
from export.audit.audit import audit_openvino
from export.options import Gate, OnnxOptions
from export.verification.targets import targets
from runtime import BackendOptions, Detector
from runtime.__main__ import main as runtime
from runtime.artifact import read_card
from runtime.backends.protocol import BackendError
from runtime.card.card import CardError
from tests.runtime.conftest import make_card

openvino = pytest.importorskip("openvino")
HAS_BF16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.fixture(scope="module")
def run(shapes_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("openvino")
    for name in ("best.pt", "best.onnx"):
        shutil.copy(shapes_run / name, folder / name)
    return folder


def test_its_targets() -> None:
    card = make_card()
    assert [t.backend for t in targets(card, "cpu")] == ["ONNX Runtime"]
    both = targets(card, "cpu", openvino_precision="float32")
    assert [(t.backend, t.device) for t in both] == [("ONNX Runtime", "cpu"), ("OpenVINO", "cpu")]
    rows = targets(card, "auto", "openvino", "bf16")
    assert [(t.backend, t.device, t.options.precision) for t in rows] == [
        ("OpenVINO", "cpu", "float32"), ("OpenVINO", "cpu", "bf16")
    ]  # fmt: skip
    assert [t.device for t in targets(card, "npu", "openvino")] == ["npu"]
    assert [t.backend for t in targets(make_card(kind="checkpoint"), "cpu", "openvino")] == ["PyTorch"]


def test_verify_has_rows_of_both_engines_or_of_the_one_that_was_asked_for(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--openvino-precision", "float32", "--device", "cpu", "--quiet"]
    assert exporter(["verify", str(run / "best.onnx"), *asked]) == 0
    content = json.loads((run / "verify.json").read_text())
    engines = [row["engine"].partition(" ")[0] for row in content["artifacts"]]
    assert engines == ["ONNX", "OpenVINO"] and all(abs(row["delta_map"]) < 0.05 for row in content["artifacts"])
    assert exporter(["verify", str(run / "best.onnx"), "--engine", "openvino", "--quiet"]) == 0
    table = capsys.readouterr().out
    assert "OpenVINO 20" in table and "ONNX Runtime" not in table.rpartition("artifact")[2]
    assert exporter(["verify", str(run / "best.onnx"), "--engine", "openvino", "--device", "npu", "--quiet"]) == 1
    assert "NOT SCORED" in capsys.readouterr().out


@pytest.mark.skipif(not HAS_BF16, reason="this processor has no bf16")
def test_the_card_knows_of_the_precision_that_the_gate_scored(run: Path) -> None:
    path = run / "bf16.onnx"
    export.to_onnx(run / "best.pt", path, OnnxOptions(), Gate(openvino_precision="bf16", tolerance=5.0))
    rows = read_card(path).verification["backends"]
    assert [row["backend"].rpartition(" ")[2] for row in rows if row["backend"].startswith("OpenVINO")][-1] == "bf16"
    runs_on = Detector(path, options=BackendOptions(engine="openvino", precision="bf16")).runs_on
    assert " mAP in bf16, by its card" in runs_on


def test_the_audit_says_what_it_really_runs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audit = audit_openvino(run / "best.onnx")
    assert audit.share("fp32") == 1 and audit.source == "openvino" and not audit.missed()
    assert exporter(["audit", str(run / "best.onnx"), "--engine", "openvino"]) == 0
    assert "FP32 100.0 %, by OpenVINO's execution graph" in capsys.readouterr().out
    assert exporter(["audit", str(run / "best.onnx"), "--engine-precision", "bf16"]) == 1
    assert "add --engine openvino" in capsys.readouterr().err
    if HAS_BF16:
        audit = audit_openvino(run / "best.onnx", precision="bf16")
        assert audit.asked == "bf16" and audit.share("bf16") == 1
    with pytest.raises(CardError, match="best.pt: OpenVINO runs .onnx files"):
        audit_openvino(run / "best.pt")
    with pytest.raises(BackendError, match="OpenVINO finds no NPU here"):
        audit_openvino(run / "best.onnx", "npu")


def test_an_int8_file_runs_in_int8(run: Path) -> None:
    path = run / "int8.onnx"
    export.to_onnx(run / "best.pt", path, OnnxOptions(precision="int8", int8=export.Int8()), Gate(verify=False))
    audit = audit_openvino(path)
    assert audit.asked == "int8" and audit.share("int8") > 0.9 and not audit.missed()


def test_the_faster_engine_is_picked_by_measurement(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", str(run / "best.onnx"), "--pick", "--seconds", "0.2", "--threads", "1", "--quiet"]
    assert runtime([*words, "--json", str(run / "pick.json")]) == 0
    table, content = capsys.readouterr().out, json.loads((run / "pick.json").read_text())
    assert {one["engine"] for one in content["engines"]} == {"onnxruntime", "openvino"}
    assert content["fastest"] == min(content["engines"], key=lambda one: one["ms"])["engine"]
    assert f"fastest here: {content['fastest']}; take it with --engine {content['fastest']}" in table
    assert runtime([*words, "--tiles", "64"]) == 0 and "fastest here: " in capsys.readouterr().out
    assert runtime([*words, "--batch", "1,4"]) == 1 and "it times single frames" in capsys.readouterr().err
    assert runtime([*words, "--engine", "openvino"]) == 1 and "leave it out with --pick" in capsys.readouterr().err
    assert runtime(["bench", str(run / "best.pt"), "--pick"]) == 1
    assert "engines are a choice for .onnx files" in capsys.readouterr().err


def test_eval_and_bench_take_the_engine(
    run: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert runtime(["eval", str(run / "best.onnx"), "--engine", "openvino", "--quiet"]) == 0
    assert "best.onnx: OpenVINO 20" in caplog.text and "AP50" in capsys.readouterr().out
    words = ["bench", str(run / "best.onnx"), "--batch", "1", "--iterations", "2", "--quiet"]
    assert runtime([*words, "--engine", "openvino"]) == 0
    printed = capsys.readouterr().out
    assert "OpenVINO 20" in printed and "NMS: runtime.suppression, after the engine" in printed
    assert runtime([*words, "--engine-precision", "bf16"]) == 1
    assert "engine_precision: a choice of OpenVINO: add --engine openvino" in capsys.readouterr().err
