"""`init`: a training that starts from a checkpoint, with its classes or others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from isodet.strict import ConfigError
from models.checkpoint import CheckpointError, read_checkpoint, start_from
from models.config.model import model_config
from models.detector import Detector
from trainer.__main__ import main
from trainer.config_reader import read_config
from trainer.loop import fit
from trainer.recipes.shapes import make_shapes
from trainer.run.folder import find_resumable

MODEL = {
    "detector": "fcos", "input_size_hw": [64, 64], "backbone": {"name": "resnet18", "width": 0.25},
    "neck": {"channels": 16, "levels": [3, 5]}, "head": {"depth": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that knows circles, squares and triangles; other.yaml for two classes that starts from it."""
    folder = tmp_path_factory.mktemp("init")
    make_shapes(folder / "data", train_images=8, val_images=4, size_hw=(64, 64))
    data = {split: {"annotations": f"data/{split}.json", "images": f"data/{split}"} for split in ("train", "val")}
    common = {"data": data, "batch_size": 4, "schedule": {"epochs": 1}, "amp": "off", "optim": {"ema": 0.9}}
    first = {**common, "name": "first", "model": {**MODEL, "classes": ["circle", "square", "triangle"]}}
    (folder / "first.yaml").write_text(json.dumps(first))
    fit(read_config(folder / "first.yaml"), folder / "runs", quiet=True)
    other = {**common, "name": "other", "init": "runs/first/best.pt", "model": {"classes": ["square", "circle"]}}
    (folder / "other.yaml").write_text(json.dumps(other))
    return folder


def test_what_the_config_does_not_say_is_the_checkpoints(folder):
    config = read_config(folder / "other.yaml")
    first = read_config(folder / "first.yaml")
    assert config.model == model_config({**MODEL, "classes": ["square", "circle"]})
    assert config.init == str(folder / "runs" / "first" / "best.pt")
    over = read_config(folder / "other.yaml", ["model.input_size_hw=[96,96]", "model.assign.radius=2"])
    assert over.model.input_size_hw == (96, 96) and over.model.assign.radius == 2
    assert over.model.backbone == first.model.backbone and over.model.assign.kind == "center"


def test_all_but_the_classes_is_kept(folder):
    config = read_config(folder / "other.yaml").model
    torch.manual_seed(1)
    detector = Detector(config)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    said = start_from(detector, folder / "runs" / "first" / "best.pt")
    given = read_checkpoint(folder / "runs" / "first" / "best.pt")["model"]
    for key, value in detector.state_dict().items():
        anew = key.startswith("head.cls.")
        assert torch.equal(value, (before if anew else given)[key]), key
    assert f"{len(given) - 2} of {len(given)} tensors" in said and "head.cls starts anew (3 classes there, 2" in said
    assert "head.box" not in said


@pytest.mark.parametrize("classes, expected", [
    (["circle", "square", "triangle"], "the classes are the same"),
    (["circle", "triangle", "square"], "head.cls starts anew (classes of other names or order)"),
])  # fmt: skip
def test_the_same_number_of_classes_is_not_the_same_classes(folder, classes, expected):
    said = start_from(Detector(model_config({**MODEL, "classes": classes})), folder / "runs" / "first" / "best.pt")
    assert expected in said


def test_a_new_config_from_a_checkpoint_has_its_model_and_trains(folder, tmp_path):
    data = folder / "data"
    sides = ["--train", "train.json", "--train-images", "train", "--val", "val.json", "--val-images", "val"]
    sides = [word if word.startswith("--") else str(data / word) for word in sides]
    best = folder / "runs" / "first" / "best.pt"
    assert main(["new", str(tmp_path / "mine.yaml"), *sides, "--init", str(best), "--size", "64"]) == 0
    config = read_config(tmp_path / "mine.yaml", ["schedule.epochs=1", "batch_size=4"])
    assert config.init == str(best) and config.model.detector == "fcos"
    assert config.model.backbone == read_config(folder / "first.yaml").model.backbone
    assert "the checkpoint's" in (tmp_path / "mine.yaml").read_text()
    assert fit(config, tmp_path / "runs", quiet=True).best.is_file()
    with pytest.raises(SystemExit):
        main(["new", str(tmp_path / "b.yaml"), *sides, "--init", str(best), "--detector", "atss"])


def test_predictions_of_another_shape_start_anew(folder):
    anchors = {"scales_per_octave": 2}
    detector = Detector(model_config({**MODEL, "classes": list("abc"), "anchors": anchors, "assign": {"kind": "atss"},
                                      "quality": "none"}))  # fmt: skip
    said = start_from(detector, folder / "runs" / "first" / "best.pt")
    assert "head.box starts anew (of another shape); head.quality starts anew" in said


def test_weights_that_are_not_finite_are_no_start(folder, tmp_path):
    content = read_checkpoint(folder / "runs" / "first" / "best.pt")
    content["model"]["head.box.weight"][-1, -1] = float("inf")
    torch.save(content, tmp_path / "broken.pt")
    with pytest.raises(CheckpointError, match=r"1 of its tensors hold NaN or infinite .* first: head\.box\.weight"):
        start_from(Detector(model_config({**MODEL, "classes": list("abc")})), tmp_path / "broken.pt")


def test_what_does_not_fit_is_refused_with_its_shapes(folder):
    detector = Detector(model_config({**MODEL, "classes": ["a"], "neck": {"channels": 24, "levels": [3, 5]}}))
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"do not fit.*neck\.laterals.*\[16, .*instead of \[24, "):
        start_from(detector, folder / "runs" / "first" / "best.pt")
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())


@pytest.mark.parametrize("override, message", [
    ("init=nowhere.pt", r"init: .*nowhere\.pt: cannot read this checkpoint: no such file"),
    ("init=first.yaml", r"init: .*first\.yaml: cannot read this checkpoint: not a file of tensors"),
    ("model.detector=atss", r"model\.detector: .*best\.pt is fcos, not atss; leave it out"),
    ("model.neck.chanels=3", r"unknown key 'model\.neck\.chanels'; did you mean 'channels'"),
])  # fmt: skip
def test_wrong_starts_are_named(folder, monkeypatch, override, message):
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match=message):
        read_config(folder / "other.yaml", [override])


def test_the_command_says_it_and_a_resumed_run_does_not_need_the_checkpoint(folder, capsys):
    first = folder / "runs" / "first" / "best.pt"
    assert main(["fit", str(folder / "other.yaml"), "--runs", str(folder / "runs"), "schedule.epochs=2"]) == 0
    assert "head.cls starts anew" in "".join(capsys.readouterr())
    hidden = first.rename(first.with_suffix(".hidden"))
    last = folder / "runs" / "other" / "last.pt"
    content = torch.load(last, weights_only=True)
    # As one that was stopped after its first epoch.
    content["resume"] |= {"epoch": 1, "finished": False}
    torch.save(content, last)
    config = find_resumable(last).config
    hidden.rename(first)
    assert config == read_config(folder / "other.yaml", ["schedule.epochs=2"])
