"""No artifact tells where it was made, and each still finds its data."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import export
from export.card_paths import handed_on, private_folders, without_paths
from export.options import Gate, Int8, OnnxOptions
from export.verification.report import write_reports
from export.verification.verify import verify
from models.checkpoint import read_checkpoint, save_checkpoint
from runtime import Card, read_card
from runtime.card.card import METADATA_KEY, sha256_file
from runtime.card.onnx_metadata import read_onnx_metadata
from runtime.runs import RunsError, validation_data
from tests.at_fault import raises
from tests.export.damaged import edited, set_card


@pytest.fixture(scope="module")
def run(shapes_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with artifacts in it, in a project folder of its own name, and its data in the project, too."""
    project = tmp_path_factory.mktemp("secret-customer")
    shutil.copytree(shapes_run.parents[1] / "data", project / "data")
    run = project / "runs" / "shapes"
    run.mkdir(parents=True)
    content = read_checkpoint(shapes_run / "best.pt")
    moved = json.loads(json.dumps(content["card"]).replace(str(shapes_run.parents[1]), str(project)))
    save_checkpoint(run / "best.pt", content["model"], moved)
    made = export.to_onnx(run / "best.pt", gate=Gate(tolerance=100.0))
    assert made.verification is not None
    write_reports(made.verification, run)
    int8 = OnnxOptions(precision="int8", int8=Int8(pictures=8))
    export.to_onnx(run / "best.pt", options=int8, gate=Gate(verify=False))
    return run


def test_no_artifact_names_a_folder_of_this_machine(run, shapes_run):
    handed = [path for path in run.iterdir() if path.suffix != ".pt"]
    names = {"best.onnx", "best.int8.onnx", "best.int8.ranges.json", "verify.json", "verify.html"}
    assert names <= {path.name for path in handed}
    handed.append(shapes_run / "best.onnx")
    folders = [run.parents[1].name, str(shapes_run.parents[1]), str(Path.cwd()), str(Path.home()), str(run)]
    for path in handed:
        content = path.read_bytes()
        assert not [folder for folder in folders if f"{folder}".encode() in content], path
    assert str(run.parents[1]).encode() in (run / "best.pt").read_bytes()  # with which it would go on training


def test_an_artifact_finds_its_data_from_the_run_or_from_the_checkpoint_beside_it(run, tmp_path):
    artifact = run / "best.onnx"
    val = read_card(artifact).training["data"]["val"]
    assert (val["annotations"], val["images"]) == ("../../data/val.json", "../../data/val")
    there = run.parents[1] / "data" / "val.json"
    assert validation_data(read_card(artifact), artifact).annotations.samefile(there)
    elsewhere = Path(shutil.copy(artifact, tmp_path))
    with pytest.raises(RunsError, match=r"best.onnx: the validation data .*val.json, is not beside it.*--annotations"):
        validation_data(read_card(elsewhere), elsewhere)
    shutil.copy(run / "best.pt", tmp_path)
    assert validation_data(read_card(elsewhere), elsewhere).annotations.samefile(there)
    assert verify([elsewhere], tolerance=100.0, device="cpu").passed


def test_artifacts_from_before_keep_their_absolute_paths_and_verify(run, tmp_path):
    old = Path(shutil.copy(run / "best.onnx", tmp_path / "old.onnx"))
    card = replace(read_card(old), training=read_checkpoint(run / "best.pt")["card"]["training"])
    edited(old, lambda model: set_card(model, card))
    assert validation_data(read_card(old), old).annotations.is_absolute()
    assert verify([old], run / "best.pt", tolerance=100.0, device="cpu").passed


def test_what_is_kept_of_a_path(tmp_path, monkeypatch):
    home = tmp_path / "home" / "ann"
    run = home / "work" / "runs" / "a"
    run.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    card = Card(
        "checkpoint", ("a",), (64, 64), 0.05, {"kind": "none", "iou": 0.5, "candidates": 9, "detections": 9},
        training={
            "near": str(run / "x.json"), "project": str(home / "work" / "data"), "far": str(home / "other" / "d.json"),
            "outside": "/srv/customer/d.json", "windows": "C:\\Users\\ann\\d.json", "own": ["pkg.module:Name", 3],
        },
        metrics={"skipped": [{"path": "/srv/customer/p.jpg", "reason": f"{home}/other/p.jpg: cut short"}]},
    )  # fmt: skip
    kept = handed_on(card, run)
    assert kept.training == {
        "near": "x.json", "project": "../../data", "far": "d.json", "outside": "d.json", "windows": "d.json",
        "own": ["pkg.module:Name", 3],
    }  # fmt: skip
    assert kept.metrics == {"skipped": [{"path": "p.jpg", "reason": "p.jpg: cut short"}]}
    assert handed_on(kept, run) == kept
    text = f"'{home}/a/b.engine': not here, see {home} or https://example.org/home/x and /layer/Conv"
    kept_text = "'b.engine': not here, see  or https://example.org/home/x and /layer/Conv"
    assert without_paths(text, private_folders()) == kept_text


def test_the_hash_of_the_checkpoint_decides_which_one_knows(run, tmp_path):
    artifact = Path(shutil.copy(run / "best.onnx", tmp_path))
    content = bytearray((run / "best.pt").read_bytes())
    (tmp_path / "best.pt").write_bytes(content + b"\0")
    assert sha256_file(tmp_path / "best.pt") != read_card(artifact).hashes["checkpoint"]
    with raises(RunsError, path=artifact):
        validation_data(read_card(artifact), artifact)
    assert METADATA_KEY in read_onnx_metadata(artifact)
