"""The whole road on a small set: config, weights, ONNX, Detector, mAP, pictures."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from export.verification.verify import TOLERANCE
from models.checkpoint import read_checkpoint, save_checkpoint
from runtime import Detector, read_card, read_coco, read_image
from runtime.evaluation.evaluate import evaluate
from tests.processes import python


def command(room: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would, from another folder than the project's."""
    return python("-m", room, *arguments, cwd=cwd)


def test_shapes_are_learned_and_the_onnx_file_scores_the_same(shapes_run):
    data = shapes_run.parent.parent / "data"
    val = read_coco(data / "val.json", data / "val")
    trained, onnx = (evaluate(Detector(shapes_run / name), val) for name in ("best.pt", "best.onnx"))
    assert trained.map > 50  # learned: unlearned weights score 0, and the recipe's shapes are large and plain
    assert onnx.map == pytest.approx(trained.map, abs=TOLERANCE["fp32"])  # what the gate promises
    card = read_card(shapes_run / "best.onnx")
    assert card.metrics["map"] == pytest.approx(onnx.map, abs=1e-3)  # a card has 3 decimals
    assert card.verification["passed"] is True
    assert card.classes == ("circle", "square", "triangle")


def test_a_run_folder_holds_what_the_readme_says(shapes_run):
    with (shapes_run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(r["epoch"]) for r in rows] == list(range(1, len(rows) + 1))
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert rows[-1]["map"] and not rows[0]["map"]  # validated every fifth epoch only
    for name in ("plots/loss.png", "plots/map.png", "plots/validation.jpg", "plots/curves.png", "plots/confusion.png"):
        picture = cv2.imread(str(shapes_run / name))
        assert picture is not None and np.ptp(picture) > 50, name  # not blank: ink on paper, of 255 levels
    page = (shapes_run / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/") == 5 and "http" not in page.replace("http://www.w3.org", "")
    assert list((shapes_run / "tensorboard").glob("events.*"))


def test_thresholds_by_class_travel_with_the_weights(shapes_run):
    trained, exported = (read_card(shapes_run / name) for name in ("best.pt", "best.onnx"))
    assert trained.thresholds and trained.thresholds == exported.thresholds
    detector = Detector(shapes_run / "best.onnx", threshold="card")
    pictures = sorted((shapes_run.parents[1] / "data" / "val").glob("*.jpg"))
    everything, found = ([d for one in detector(pictures, t) for d in one] for t in (0.0, None))
    limits = {name: trained.thresholds.get(name, trained.threshold) for name in trained.classes}
    expected = [d.score for d in everything if d.score >= np.float32(limits[d.name])]
    assert [d.score for d in found] == expected and 0 < len(found) < len(everything)


def test_the_commands_walk_the_road(shapes_run, tmp_path):
    """show, eval, verify and detect by their command lines, with the newest run found by themselves."""
    cwd = shapes_run.parent.parent
    shown = command("trainer", "show", "data/shapes.yaml", "optim.lr=1e-3", cwd=cwd)
    assert shown.returncode == 0 and "lr: 0.001" in shown.stdout

    scored = command("trainer", "eval", "--quiet", cwd=cwd)
    assert scored.returncode == 0, scored.stderr
    assert "runs/shapes/best.pt" in scored.stdout and "mAP" in scored.stdout

    verified = command("exporter", "verify", "--quiet", "--report", tmp_path, cwd=cwd)
    assert verified.returncode == 1 and "No module named exporter" in verified.stderr  # the module is `export`
    verified = command("export", "verify", "--quiet", "--report", tmp_path, cwd=cwd)
    assert verified.returncode == 0, verified.stderr
    assert verified.stdout.rstrip().endswith("passed")
    report = json.loads((tmp_path / "verify.json").read_text())
    assert report["passed"] and abs(report["artifacts"][0]["delta_map"]) <= TOLERANCE["fp32"]
    assert "data:image/jpeg" in (tmp_path / "verify.html").read_text()

    picture = sorted((cwd / "data" / "val").glob("*.jpg"))[0]
    found = command("runtime", "detect", picture, "--out", tmp_path / "found", "--quiet", cwd=cwd)
    assert found.returncode == 0, found.stderr
    assert "best.onnx" in found.stdout
    assert read_image(tmp_path / "found" / picture.name).shape == read_image(picture).shape


def test_a_gate_that_is_not_met_fails_and_leaves_nothing(shapes_run, tmp_path):
    """Weights damaged after training: the file scores less than its reference and must not pass for it."""
    content = read_checkpoint(shapes_run / "best.pt")
    damaged = {k: v.clone() for k, v in content["model"].items()}
    damaged["head.box.weight"] += 0.05 * torch.randn(damaged["head.box.weight"].shape, generator=torch.manual_seed(0))
    save_checkpoint(tmp_path / "damaged.pt", damaged, content["card"])
    cwd = shapes_run.parent.parent
    exported = command("export", "onnx", tmp_path / "damaged.pt", "--quiet", cwd=cwd)
    assert exported.returncode == 0, exported.stderr  # it equals its own checkpoint
    files = [tmp_path / "damaged.onnx", "--against", shapes_run / "best.pt", "--report", tmp_path]
    verified = command("export", "verify", *files, "--quiet", cwd=cwd)
    assert verified.returncode == 1 and "FAILED" in verified.stdout
    assert json.loads((tmp_path / "verify.json").read_text())["passed"] is False
