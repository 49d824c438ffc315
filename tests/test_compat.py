"""Files that earlier versions wrote still load: tests/compat."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import export
from export.options import Int8
from runtime import Detector, read_card
from trainer.config_reader import read_config
from trainer.loop import fit
from trainer.recipes.shapes import make_shapes
from trainer.run.folder import find_resumable

BEFORE = Path(__file__).parent / "compat"
PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the run's folder."""
    return Path(shutil.copytree(BEFORE, tmp_path / "runs" / "shapes"))


def test_artifacts_detect_what_they_did(run):
    for name, score in (("last.pt", 0.0724), ("last.onnx", 0.0724), ("last.int8.onnx", 0.0713)):
        assert read_card(run / name).classes == ("circle", "square", "triangle")
        (found,) = Detector(run / name, device="cpu", threshold=0.0)([PICTURE])
        assert len(found) > 5 and found.scores[0] == pytest.approx(score, abs=1e-3), name


def test_a_run_goes_on_with_its_config(run, tmp_path):
    written = read_config(run / "config.yaml", resolved=True)
    resume = find_resumable(run, tmp_path / "runs")
    assert resume.config == written and resume.state["epoch"] == 1 and resume.state["batch"] == 2
    make_shapes(tmp_path / "data", train_images=16, val_images=4, size_hw=(64, 64))
    data = read_config(tmp_path / "data" / "shapes.yaml").data
    moved = replace(written, data=replace(written.data, train=data.train, val=data.val))
    result = fit(moved, tmp_path / "runs", resume, quiet=True)
    assert [row.split(",")[0] for row in (result.run / "metrics.csv").read_text().splitlines()] == ["epoch", "1", "2"]


def test_ranges_serve_another_export(run):
    options = export.OnnxOptions(precision="int8", int8=Int8(ranges=run / "last.int8.ranges.json"))
    made = export.to_onnx(run / "last.pt", run / "again.onnx", options, export.Gate(verify=False))
    (before,) = Detector(run / "last.int8.onnx", device="cpu", threshold=0.0)([PICTURE])
    (after,) = Detector(made.path, device="cpu", threshold=0.0)([PICTURE])
    assert after.scores[0] == pytest.approx(before.scores[0], abs=1e-6)
