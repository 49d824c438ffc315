"""The loop: repeatable, resumable, and clear about what stops it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from isodet.strict import ConfigError
from models.checkpoint import CheckpointError, read_checkpoint
from runtime.datasets.annotations import DatasetError
from tests.at_fault import raises
from tests.trainer.interrupted import stop_before_epoch
from tests.trainer.tiny import tiny_config, weights
from trainer.__main__ import main
from trainer.loop import TrainingError, fit
from trainer.run.folder import find_resumable

PICTURES = (12, 4)


@pytest.mark.parametrize("detector", ["atss", "retinanet", "fcos"])
def test_every_preset_trains_and_saves_loadable_weights(data: Path, tmp_path: Path, detector: str) -> None:
    result = fit(tiny_config(data, f"model.detector={detector}", "optim.accumulate=2"), tmp_path, quiet=True)
    content = read_checkpoint(result.best)
    assert content["card"]["model"]["detector"] == detector
    assert all(torch.isfinite(v).all() for v in content["model"].values())


def test_the_same_seed_gives_the_same_weights_and_another_does_not(data: Path, tmp_path: Path) -> None:
    first, same, other = (
        weights(fit(tiny_config(data, f"seed={seed}"), tmp_path, quiet=True).run / "last.pt") for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[k], same[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_a_resumed_run_ends_with_the_weights_of_one_never_stopped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_config(data, "schedule.epochs=3")
    whole = fit(settings, tmp_path / "whole", quiet=True)
    stop_before_epoch(3, settings, tmp_path / "cut")
    resume = find_resumable(None, tmp_path / "cut")
    assert resume.state["epoch"] == 2
    resumed = fit(resume.config, tmp_path / "cut", resume, quiet=True)
    assert resumed.run == tmp_path / "cut" / "shapes"
    a, b = weights(whole.run / "last.pt"), weights(resumed.run / "last.pt")
    assert all(torch.equal(a[k], b[k]) for k in a)
    rows = (resumed.run / "metrics.csv").read_text().splitlines()
    assert [r.split(",")[0] for r in rows] == ["epoch", "1", "2", "3"]
    with pytest.raises(ConfigError, match="finished its 3 epochs"):
        find_resumable(resumed.run)
    with pytest.raises(ConfigError, match="nothing to resume"):
        find_resumable(None, tmp_path / "cut")
    with raises(CheckpointError, path=resumed.run / "best.pt"):
        find_resumable(resumed.run / "best.pt")


def test_a_second_run_of_the_same_name_gets_its_own_folder(data: Path, tmp_path: Path) -> None:
    runs = [fit(tiny_config(data, "schedule.epochs=1"), tmp_path, quiet=True).run.name for _ in range(2)]
    assert runs == ["shapes", "shapes-2"]


def test_a_loss_that_is_not_finite_stops_with_the_images_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"not finite in epoch 1 .* on images \[\d+, .*Lower optim\.lr"):
        fit(tiny_config(data, "optim.kind=sgd", "optim.lr=1e30", "optim.clip_norm=0"), tmp_path, quiet=True)


def test_images_without_objects_teach_background_with_no_box_loss(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    coco = json.loads((copy / "train.json").read_text())
    first = coco["images"][0]  # all objects are on a picture that cannot be read: data without any is refused
    coco["annotations"] = [a for a in coco["annotations"] if a["image_id"] == first["id"]]
    (copy / "train" / first["file_name"]).write_bytes(b"")
    (copy / "train.json").write_text(json.dumps(coco))
    run = fit(tiny_config(copy, "schedule.epochs=1"), tmp_path / "runs", quiet=True).run
    header, row = (line.split(",") for line in (run / "metrics.csv").read_text().splitlines())
    values = dict(zip(header, row, strict=True))
    assert float(values["loss_cls"]) > 0
    assert float(values["loss_box"]) == 0 and float(values["loss_quality"]) == 0


def test_broken_pictures_are_skipped_and_counted(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    first, second, third = sorted((copy / "train").glob("*.jpg"))[:3]
    first.write_bytes(first.read_bytes()[:200])
    second.write_bytes(b"")
    third.unlink()
    fit(tiny_config(copy, "schedule.epochs=2"), tmp_path / "runs")
    said = capsys.readouterr().err
    assert said.count("2 of 11 training pictures cannot be used") == 1
    assert "train: 1 images whose file is missing (skipped)" in said
    assert sum(first.name in r.getMessage() for r in caplog.records) == 1
    assert sum(second.name in r.getMessage() for r in caplog.records) == 1


def test_a_set_without_a_usable_picture_is_an_error(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    for path in (copy / "train").glob("*.jpg"):
        path.write_bytes(b"not a picture")
    with pytest.raises(TrainingError, match="not one training picture could be used"):
        fit(tiny_config(copy), tmp_path / "runs", quiet=True)


def test_an_empty_dataset_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    (copy / "train.json").write_text(
        json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]})
    )
    with raises(DatasetError, key="images", path=copy / "train.json"):
        fit(tiny_config(copy, "model.classes=[a]"), tmp_path / "runs", quiet=True)
    assert main(["fit", str(copy / "shapes.yaml"), "model.classes=[a]", "--runs", str(tmp_path / "runs")]) == 1
    error = capsys.readouterr().err
    assert "trainer fit: error:" in error and "Traceback" not in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["fit"], 2, "name a CONFIG, or give --resume"),
        (["fit", "c.yaml", "--resume", "runs/x"], 2, "no CONFIG and no key=value"),
        (["fit", "nowhere.yaml"], 1, "nowhere.yaml: cannot read this config"),
        (["fit", "--resume", "--runs", "nowhere"], 1, "nothing to resume"),
        (["eval", "--runs", "nowhere"], 1, "there is no best.pt"),
        (["show", "c.yaml", "--wrong"], 2, "unrecognized arguments: --wrong"),
        (["new", "thing.yaml"], 2, "for your own data name a new FILE.yaml"),
        (["check-data", "none.yaml", "--augment", "seed=1"], 1, "cannot read this config"),
        (["check-data", "--augment", "none.yaml"], 1, "cannot read this config"),
        (["check-data", "none.yaml", "--augment", "all"], 1, "cannot read this config"),
    ],
)
def test_exit_status_and_advice(
    arguments: list[str], status: int, text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    try:
        got = main(arguments)
    except SystemExit as stop:
        got = stop.code  # type: ignore[assignment]
    assert got == status
    assert text in capsys.readouterr().err


def test_workers_change_nothing(data: Path, tmp_path: Path) -> None:
    runs = [fit(tiny_config(data, "schedule.epochs=1", f"data.workers={n}"), tmp_path, quiet=True).run for n in (0, 2)]
    a, b = (weights(run / "last.pt") for run in runs)
    assert all(np.array_equal(a[k], b[k]) for k in a)
