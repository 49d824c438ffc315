"""A picture for each augmentation, from the command line, with negatives that a trained detector found."""

import json

import cv2
import numpy as np

from trainer.__main__ import main
from trainer.check.data import check_data
from trainer.config_reader import read_config
from trainer.recipes import make_shapes


def test_each_augmentation_that_is_on_has_a_picture_where_it_can_be_seen(tmp_path):
    make_shapes(tmp_path / "set", 8, 2)
    config = read_config(tmp_path / "set" / "shapes.yaml", [
        "augment.noise.probability=0.1", "augment.noise.sigma=[40, 40]", "augment.flip=0",
        "augment.color_probability=0", "augment.hard_negatives.file=nothing.json",
    ])  # fmt: skip
    report = check_data(config, tmp_path / "out", augment="on")
    written = [path for path in report.written if path.parent.name == "augment"]
    assert [path.stem for path in written] == ["noise", "scale", "pipeline", "overview"] and report.not_drawn == ()
    noise = cv2.imread(str(written[0])).astype(int)
    cell = 260 + 4
    before, after = noise[20:220, 20:240], noise[20:220, 20 + cell : 240 + cell]
    assert np.abs(np.diff(after, axis=1)).mean() > 2 * np.abs(np.diff(before, axis=1)).mean()
    assert check_data(config, tmp_path / "none").written[-1].name == "samples.jpg"


def test_a_picture_of_everything_and_what_has_none(tmp_path, capsys):
    make_shapes(tmp_path / "set", 4, 2)
    command = ["check-data", str(tmp_path / "set" / "shapes.yaml"), "--augment", "all", "--out", str(tmp_path / "out")]
    assert main([*command, "--quiet", "augment.torchvision=[{RandomInvert: {p: 1}}]"]) == 0
    names = {path.stem for path in (tmp_path / "out" / "augment").iterdir()}
    assert names == {"copy_paste", "trivial", "auto", "crop", "multi_scale", "mosaic", "distort", "blur", "noise",
                     "jpeg", "mixup", "flip", "flip_vertical", "scale", "color", "torchvision", "pipeline",
                     "overview"}  # fmt: skip
    told = capsys.readouterr().out
    assert "augment.hard_negatives: not drawn without augment.hard_negatives.file" in told
    assert "augment.albumentations: not drawn, because augment.albumentations names no transform" in told


def test_mined_in_a_run_and_drawn(shapes_run, tmp_path, capsys):
    data = shapes_run.parents[1] / "data"
    out = tmp_path / "negatives.json"
    command = ["mine-negatives", str(shapes_run / "best.pt"), "--out", str(out), "--score", "0.05", "--quiet"]
    assert main([*command, "--annotations", str(data / "val.json"), "--images", str(data / "val")]) == 0
    told = capsys.readouterr().out
    content = json.loads(out.read_text())
    assert f"the {len(content['negatives'])} with the highest scores" in told and content["classes"][0] == "circle"
    assert main([*command, "--limit", "1"]) == 0  # the run's own training data
    assert json.loads(out.read_text())["negatives"][0]["file_name"] in {p.name for p in (data / "train").iterdir()}
    overrides = ["augment.hard_negatives.probability=0.5", f"augment.hard_negatives.file={out}"]
    report = check_data(read_config(data / "shapes.yaml", overrides), tmp_path / "check", augment="on")
    assert (tmp_path / "check" / "augment" / "hard_negatives.jpg") in report.written
    assert main([*command, "--images", str(data / "val")]) == 1
    assert "give --annotations, too" in capsys.readouterr().err
