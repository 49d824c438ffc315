"""The benchmark on real photographs, on tiny generated sets: its rows, its results file, its table."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import real_vs_peers
from benchmarks.real_sets import RESULTS, SetsError, read_results, sets_of, write_config
from benchmarks.real_vs_peers import Job, main, markdown, train
from tests.at_fault import raises
from trainer.recipes.shapes import make_shapes

SIZE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of generated pictures and their sets.yaml."""
    root = tmp_path_factory.mktemp("sets")
    lines = []
    for seed, name in enumerate(("one", "two")):
        make_shapes(root / name, train_images=12, val_images=4, size_hw=(64, 64), seed=seed)
        lines.append(f"{name}: {{train: {name}/train.json, train_images: {name}/train, "
                     f"val: {name}/val.json, val_images: {name}/val}}")  # fmt: skip
    (root / "sets.yaml").write_text("\n".join(lines))
    return root


@pytest.fixture
def from_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are neither here nor asked for."""
    from models.backbones.weights import Published

    monkeypatch.setattr(Published, "here", property(lambda self: False))
    monkeypatch.setattr(Published, "reachable", lambda self, timeout=3.0: False)


@pytest.mark.parametrize("row", ["isodet", "isodet-edge", "torchvision-fcos", "torchvision-retinanet"])
def test_every_row_trains_on_the_same_pictures_and_is_judged(folder, tmp_path, from_scratch, row):
    write_config("one", sets_of(folder)["one"], tmp_path, SIZE)
    record = train(Job(row, "one", 3, pictures=20, size=SIZE), tmp_path)
    assert record["seen"] == 24 and 0 <= record["map"] <= record["ap50"] <= 100
    assert record["start"] == {"isodet-edge": "repvgg_a0"}.get(row, "resnet18") + ", from scratch"
    assert record["versions"]["torch"] and record["processor"] and record["threads"] >= 1


def record_of(job: Job, score: float) -> dict[str, Any]:
    return {
        **vars(job), "start": "resnet18, from scratch", "seen": 24, "map": score, "ap50": 2 * score, "ap75": score,
        "seconds": 60.0, "processor": "a CPU", "threads": 2, "python": "3.12", "versions": {"torch": "2"},
    }  # fmt: skip


def test_a_run_that_was_cut_short_goes_on(folder, tmp_path, from_scratch, monkeypatch, capsys):
    trained: list[str] = []

    def one(job: Job, arguments: Namespace) -> dict[str, Any]:
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(job.name)
        return record_of(job, 10.0 * len(trained))

    monkeypatch.setattr(real_vs_peers, "trained", one)
    words = ["--data", str(folder), "--out", str(tmp_path), "--pictures", "24", "--size", str(SIZE)]
    words += ["--only", "isodet", "isodet-edge", "isodet-lite0", "ultralytics-yolo11n-coco"]
    with pytest.raises(KeyboardInterrupt):
        main(words)
    assert trained == ["isodet-one-seed0", "isodet-edge-one-seed0", "isodet-two-seed0"]
    assert "isodet-lite0 is left out: its ImageNet weights" in capsys.readouterr().out
    with open(tmp_path / RESULTS, "a") as file:
        file.write('{"row": "isodet-edge", "data')  # the machine went down while it wrote
    assert main(words) == 1 and "--resume" in capsys.readouterr().err
    monkeypatch.setattr(real_vs_peers, "trained", lambda job, _: trained.append(job.name) or record_of(job, 40))
    assert main([*words, "--resume"]) == 0
    assert trained[3:] == ["isodet-edge-two-seed0"]
    assert len(read_results(tmp_path / RESULTS)) == 4
    out = capsys.readouterr().out
    assert "| isodet | resnet18, from scratch | 10.0 | 30.0 | 20.0 | 40.0 | 1.0 |" in out
    assert "| isodet-edge | resnet18, from scratch | 20.0 | 40.0 | 30.0 | 60.0 | 1.0 |" in out
    assert "Processor: a CPU, 2 threads. Python 3.12, torch 2." in out
    assert main([*words, "--table", "--sets", "two"]) == 0
    assert "| isodet | resnet18, from scratch | 30.0 | 30.0 | 60.0 | 1.0 |" in capsys.readouterr().out


def test_seeds_have_a_range_and_a_row_without_a_set_no_mean():
    records = [record_of(Job("isodet", "one", seed, 24), 10.0 + seed) for seed in (0, 2)]
    records.append(record_of(Job("isodet", "two", 0, 24), 30.0))
    records.append(record_of(Job("isodet-edge", "two", 0, 24), 30.0))
    table = markdown(records, ["isodet", "isodet-edge"], ["one", "two"])
    assert "| 11.0 (10.0 to 12.0) | 30.0 | 20.5 | 41.0 |" in table
    assert "| isodet-edge | resnet18, from scratch | - | 30.0 | - | - | 1.0 |" in table


def test_a_training_is_a_process_whose_failure_names_its_log(folder, tmp_path, from_scratch, capsys):
    arguments = Namespace(out=tmp_path, data=folder, yolo_weights=[], threads=1)
    with raises(SetsError, path=tmp_path / "logs" / "isodet-one-seed0.log"):
        real_vs_peers.trained(Job("isodet", "one", 0, 12, SIZE), arguments)  # nobody wrote its config
    write_config("one", sets_of(folder)["one"], tmp_path, SIZE)
    record = real_vs_peers.trained(Job("isodet", "one", 0, 12, SIZE), arguments)
    assert record["row"] == "isodet" and record["threads"] == 1 and record["seen"] == 12


def test_folders_are_named_and_refused(folder, tmp_path, capsys):
    with raises(SetsError, path=tmp_path):
        sets_of(tmp_path)
    (tmp_path / "leaf").mkdir()
    assert sets_of(tmp_path)["leaf"].train == str(tmp_path / "leaf" / "train")
    (tmp_path / "sets.yaml").write_text("one: {train: a, vall: b}")
    assert main(["--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "one.vall" in capsys.readouterr().err
    assert main(["--data", str(folder), "--out", str(tmp_path / "out"), "--sets", "three"]) == 1
    assert "there is no set 'three'" in capsys.readouterr().err
    (tmp_path / RESULTS).write_text("no json\n" + json.dumps({}) + "\n")
    with raises(SetsError, path=tmp_path / RESULTS):
        read_results(tmp_path / RESULTS)
