"""Configs: strict, typed, inherited, overridden; what is wrong is named with its nearest right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from isodet.strict import ConfigError, to_mapping
from models.checkpoint import save_checkpoint
from models.config.model import PRESETS, model_config
from models.detector import Detector
from models.quant import QuantDetector
from trainer.config.train import dump_config
from trainer.config_reader import read_config
from trainer.run.checkpoint_card import checkpoint_card
from trainer.state import starting_model

BASE = """
data:
  train: {annotations: train.json, images: train}
  val: {annotations: val.json, images: /data/val}
model: {classes: [a, b]}
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.rl=0.1", r"unknown key 'optim.rl'; did you mean 'lr'\?"),
        ("optimizer.lr=0.1", r"unknown key 'optimizer'; did you mean 'optim'\?"),
        ("optim.lr=fast", r"optim.lr: expected a number, got 'fast' \(str\)"),
        ("optim.lr=-1", r"optim.lr: expected a positive number, got -1"),
        ("optim.lr=.nan", r"optim.lr: expected a number"),
        ("optim.kind=sdg", r"optim.kind: expected one of sgd, adam.*, got 'sdg' \(str\); did you mean 'sgd'\?"),
        ("schedule.epochs=1.5", r"schedule.epochs: expected a whole number, got 1.5 \(float\)"),
        ("schedule.epochs=true", r"schedule.epochs: expected a whole number"),
        ("channels_last=1", r"channels_last: expected true or false"),
        ("channels_last=no", r"channels_last: expected true or false, got 'no' \(str\)"),
        ("model.detector=yolo", r"model.detector: expected one of atss, retinanet, fcos"),
        ("model.classes=[]", r"model.classes: expected at least one class name"),
        ("model.classes=[a,a]", r"model.classes: expected names that differ \(twice: a\)"),
        ("model.classes=[1,2]", r"model.classes\[0\]: expected text, got 1 \(int\)"),
        ("model.input_size_hw=[320,300]", r"model.input_size_hw: expected \[height, width\], each a multiple of 32"),
        ("model.input_size_hw=[320]", r"model.input_size_hw: expected a list of 2 values"),
        ("model.neck.levels=[6,7]", r"model.neck.levels: expected \[first, last\]"),
        ("model.postprocess.candidates=5000", r"model.postprocess.candidates: expected 1 to 3840"),
        ("model.backbone={width: 0.5, weights: imagenet}", r"model.backbone.weights: 'imagenet' needs width"),
        ("model.box={code: ltrb, loss: l1}", r"model.box.loss: l1 is defined on delta codes"),
        ("name=a/b", r"name: expected a folder name"),
        ("name=", r"name: expected text, got None"),
        ("batch_size", r"override 'batch_size': expected key=value"),
        ("batch_size=[1", r"override 'batch_size=\[1': the value is not valid YAML"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, override, message):
    path = write(tmp_path, "c.yaml", BASE)
    with pytest.raises(ConfigError, match=message):
        read_config(path, [override])


def test_a_batch_with_one_cell_on_a_level_has_no_statistics(tmp_path):
    """What torch would raise for in the first step is refused with what helps, and each of that does."""
    path = write(tmp_path, "c.yaml", BASE)
    small = ["batch_size=1", "model.input_size_hw=[96,128]", "model.neck.levels=[3,7]"]
    for norm in ("sepbn", "bn"):
        with pytest.raises(ConfigError, match="batch_size: .*has one on level 7; use batch_size: 2 or more"):
            read_config(path, [*small, f"model.head.norm={norm}"])
    for way_out in ("batch_size=2", "model.head.norm=gn", "model.neck.levels=[3,6]", "model.resize.rule=short-side"):
        read_config(path, [*small, way_out])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a YAML mapping"),
        ("- a", "expected a YAML mapping"),
        ("a: [", "not valid YAML"),
        ("_base_: c.yaml", "comes back to itself"),
        ("_base_: other.yaml", r"other.yaml: cannot read this config \(named as _base_ by"),
        ("name: a\nname: b", "not valid YAML: key 'name' is there twice"),
        ("_base_: 3", "expected a path or a list of paths"),
        ("model: {classes: [a]}", "missing key 'data'"),
        ("data: {train: 3}", "missing key 'model'|data.train: expected a mapping"),
    ],
)
def test_files_that_are_no_configs(tmp_path, text, message):
    path = write(tmp_path, "c.yaml", text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_config(path)
    assert "c.yaml" in str(caught.value)


def test_paths_are_relative_to_the_file_that_says_them(tmp_path):
    write(tmp_path, "shared/base.yaml", BASE)
    path = write(tmp_path, "mine/c.yaml", "_base_: ../shared/base.yaml\ndata: {val: {annotations: v.json}}\n")
    config = read_config(path)
    assert config.data.train.annotations == str(tmp_path / "shared" / "train.json")
    assert config.data.val.annotations == str(tmp_path / "mine" / "v.json")
    assert config.data.val.images == "/data/val"
    for weights, read in (("r18.pth", str(tmp_path / "mine" / "r18.pth")), ("imagenet", "imagenet"), ("null", None)):
        path = write(tmp_path, "mine/w.yaml", f"_base_: c.yaml\nmodel: {{backbone: {{weights: {weights}}}}}\n")
        assert read_config(path).model.backbone.weights == read


def test_later_layers_win_key_by_key(tmp_path):
    write(tmp_path, "a.yaml", BASE + "optim: {lr: 0.1, momentum: 0.5}\n")
    write(tmp_path, "b.yaml", "optim: {lr: 0.2}\nschedule: {epochs: 3}\n")
    path = write(tmp_path, "c.yaml", "_base_: [a.yaml, b.yaml]\nschedule: {epochs: 4}\n")
    config = read_config(path, ["optim.weight_decay=1e-3"])
    assert (config.optim.lr, config.optim.momentum, config.optim.weight_decay) == (0.2, 0.5, 1e-3)
    assert config.schedule.epochs == 4


@pytest.mark.parametrize("detector", PRESETS)
def test_the_resolved_config_reads_back_equal(tmp_path, detector):
    config = read_config(write(tmp_path, "c.yaml", BASE), [f"model.detector={detector}"])
    again = read_config(write(tmp_path, "d.yaml", dump_config(config)))
    assert again == config
    assert model_config(to_mapping(config.model)) == config.model


def test_words_and_numbers_are_read_as_yaml_1_2_does(tmp_path):
    path = write(tmp_path, "c.yaml", BASE.replace("[a, b]", "[no, on, y, 1e, '1']"))
    config = read_config(path, ["amp=off", "optim.lr=1e-3", "optim.weight_decay=.5E-1"])
    assert config.model.classes == ("no", "on", "y", "1e", "1")
    assert (config.amp, config.optim.lr, config.optim.weight_decay) == ("off", 0.001, 0.05)


def test_a_preset_on_the_command_line_replaces_what_the_file_says(tmp_path):
    path = write(tmp_path, "c.yaml", BASE + "schedule: {epochs: 5, kind: cosine, early_stop: 3}\n")
    schedule = read_config(path, ["schedule.preset=2x"]).schedule
    assert (schedule.epochs, schedule.kind, schedule.early_stop) == (24, "step", 3)
    assert read_config(path, ["schedule.preset=2x", "schedule.epochs=7"]).schedule.epochs == 7


@pytest.mark.parametrize(
    ("given", "meant"),
    [("lr=1", "'optim.lr'"), ("epochs=1", "'schedule.epochs'"), ("optim.backbone=x", "'model.backbone'"),
     ("optim.lrr=1", "'lr'")],
)  # fmt: skip
def test_a_key_in_the_wrong_place_is_told_the_right_one(tmp_path, given, meant):
    with pytest.raises(ConfigError, match=f"unknown key .*; did you mean {meant}"):
        read_config(write(tmp_path, "c.yaml", BASE), [given])


def test_a_checkpoint_and_no_file_are_no_configs(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot read this config: No such file"):
        read_config(tmp_path / "nowhere.yaml")
    (tmp_path / "best.pt").write_bytes(b"PK\x03\x04\x80\xff")
    with pytest.raises(ConfigError, match=r"best\.pt: expected a YAML config, and this is not a text file.*--qat"):
        read_config(tmp_path / "best.pt")


def test_a_preset_is_laid_under_the_keys_that_are_given():
    config = model_config({"classes": ["a"], "detector": "retinanet", "anchors": {"ratios": [1.0]}})
    assert config.assign.kind == "iou" and config.quality == "none"
    assert config.anchors.per_cell == 3 and config.anchors.size == 4


CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_config_loads_and_says_what_it_was_measured_at(path, tmp_path):
    text = path.read_text()
    starts = re.search(r"^init: (\S+)$", text, re.MULTILINE)
    config = read_config(path, ["init=null", "qat=null"] if starts else [])
    assert len(config.model.classes) == 80
    assert text.count("Measured:") == 1
    if starts:  # from what another shipped config trains; here from its first weights
        names = {read_config(p).name for p in CONFIGS if p != path and p.parent == path.parent}
        assert Path(starts[1]).parts[-3:-1] in {("runs", name) for name in names}
        weights = Detector(config.model, load_weights=False).state_dict()
        save_checkpoint(tmp_path / "best.pt", weights, checkpoint_card(config.model, {}).to_json())
        config = read_config(path, [f"init={tmp_path / 'best.pt'}"])
        model, started = starting_model(config, resumed=False)
        assert isinstance(model, QuantDetector) and "the classes are the same" in started


def test_the_table_of_configs_has_them_all():
    folder = Path(__file__).parents[2] / "configs"
    linked = set(re.findall(r"\]\(((?:coco|peers)/\S+\.yaml)\)", (folder / "README.md").read_text()))
    assert linked == {str(path.relative_to(folder)) for path in CONFIGS}
    assert {p.stem for p in CONFIGS} >= {"atss_r50", "fcos_r50", "retinanet_r50"}
