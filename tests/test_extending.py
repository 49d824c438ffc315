"""docs/extending.md: its examples are real. They are taken from the page, trained, resumed and exported."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

import export
from isodet.strict import ConfigError, merge
from models.checkpoint import CheckpointError, load_detector, read_checkpoint
from models.deploy.graph import Deploy
from runtime import Detector
from runtime.datasets.coco import read_coco
from runtime.images.image import read_image
from tests.models.custom_folder import forget as forget_modules
from tests.trainer.interrupted import stop_before_epoch
from trainer.__main__ import main
from trainer.config.train import dump_config
from trainer.config_reader import read_config
from trainer.data.train_set import TrainSet, collate, init_worker, resize_rule
from trainer.recipes.shapes import make_shapes

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
PYTHON = {body.split()[1]: body for body in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)}
YAML = [yaml.safe_load(body) for body in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]

NAMED_BY = (("backbone", "name"), ("neck", "kind"), ("assign", "kind"), ("box", "loss"), ("loss", "cls"))

BASE = """
name: own
data: {train: {annotations: data/train.json, images: data/train}, val: {annotations: data/val.json, images: data/val}}
model:
  classes: [circle, square, triangle]
  input_size_hw: [64, 64]
  backbone: {name: resnet18}
  neck: {channels: 16}
  head: {depth: 1}
batch_size: 4
optim: {kind: adamw, lr: 0.002, clip_norm: 10}
schedule: {epochs: 2}
amp: "off"
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's folder: the page's modules, a small data set, `all.yaml` with every example of the page at once."""
    folder = tmp_path_factory.mktemp("project")
    make_shapes(folder / "data", train_images=12, val_images=4, size_hw=(64, 64))
    for name, body in PYTHON.items():
        (folder / name).write_text(body)
    (folder / "base.yaml").write_text(BASE)
    everything = functools.reduce(merge, YAML, {"_base_": "base.yaml"})
    (folder / "all.yaml").write_text(yaml.safe_dump(everything))
    path = list(sys.path)
    yield folder
    forget(folder, path)


def forget(folder: Path, path: list[str]) -> None:
    """As a fresh process would begin."""
    sys.path[:] = path
    forget_modules(folder)


def test_there_is_an_example_of_each_kind_and_none_is_long():
    assert len(PYTHON) == 6 and len(YAML) == 6
    for name, body in PYTHON.items():
        assert len(body.splitlines()) < 30, name
        assert max(len(line) for line in body.splitlines()) <= 120, name
    everything = functools.reduce(merge, YAML)
    named = [everything["model"][section][key] for section, key in NAMED_BY]
    named.append(everything["augment"]["own"][0]["name"])
    assert sorted(str(name).partition(":")[0] + ".py" for name in named) == sorted(PYTHON)


@pytest.mark.parametrize("number", range(len(YAML)))
def test_each_example_fits_by_itself(project, number):
    (project / "one.yaml").write_text(yaml.safe_dump({"_base_": "base.yaml", **YAML[number]}))
    config = read_config(project / "one.yaml")
    again = project / "elsewhere" / "again.yaml"
    again.parent.mkdir(exist_ok=True)
    again.write_text(dump_config(config))
    assert read_config(again) == config


def test_all_examples_train_resume_and_export(project, tmp_path, monkeypatch, capsys):
    fresh = [entry for entry in sys.path if entry != str(project.resolve())]
    config = read_config(project / "all.yaml")
    stop_before_epoch(2, config, tmp_path)

    # Another process, working in another folder, goes on: the run knows where its code is.
    forget(project, fresh)
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--resume", "--runs", str(tmp_path), "--quiet"]) == 0
    assert "epoch 2 of 2" in capsys.readouterr().out
    best = tmp_path / "own" / "best.pt"
    card = read_checkpoint(best)["card"]
    assert card["model"]["assign"]["arguments"] == {"count": 6, "size": 8.0}
    assert all(torch.isfinite(v).all() for v in read_checkpoint(best)["model"].values())

    # A checkpoint does not say where code is found: Python's own path does.
    forget(project, fresh)
    with pytest.raises(CheckpointError, match="the module plain_net of plain_net:PlainNet is not imported"):
        export.to_onnx(best)
    sys.path.append(str(project))
    exported = export.to_onnx(best)
    assert exported.fold_difference < 1e-5
    assert exported.verification is not None and exported.verification.passed
    assert not {"asymmetric", "nearest_points", "tiny_boxes", "weather"} & set(sys.modules)  # nor needed, nor imported

    deploy, _ = load_detector(best)
    assert isinstance(deploy, Deploy)
    norms = [m for m in deploy.detector.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not norms  # ConvNorm folds inside a user's class, too
    images = np.stack([read_image(path) for path in sorted((project / "data" / "val").glob("*.jpg"))[:3]])
    with torch.inference_mode():
        eager = deploy(torch.from_numpy(images))
    graph = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    for a, b in zip(eager, graph.run(None, {"images": images}), strict=True):
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-4, atol=1e-3)

    # `init` takes the checkpoint's model over: not its code, unless the config names the parts itself.
    init = {**yaml.safe_load(BASE), "init": str(best), "model": {"classes": ["circle"]}}
    (project / "init.yaml").write_text(yaml.safe_dump(init))
    forget(project, fresh)
    with pytest.raises(ConfigError, match=r"init: .*best.pt: the module plain_net .* name the part in this config's"):
        read_config(project / "init.yaml")
    assert "plain_net" not in sys.modules
    named = [f"model.{section}.{key}={card['model'][section][key]}" for section, key in NAMED_BY]
    assert read_config(project / "init.yaml", named).model.backbone.arguments == {"width": 16, "depths": [1, 1, 2, 1]}

    # The graph runs where nobody has the code.
    forget(project, fresh)
    assert len(Detector(exported.path)(list(images))) == len(images)
    assert "plain_net" not in sys.modules


def test_loader_processes_find_the_augmentation_and_draw_the_same(project):
    text = "_base_: base.yaml\naugment: {own: [{name: weather:fog, probability: 0.5, arguments: {strength: 2}}]}"
    (project / "fog.yaml").write_text(text)
    config = read_config(project / "fog.yaml")
    data = read_coco(config.data.train.annotations, config.data.train.images, config.model.classes)
    dataset = TrainSet(data, resize_rule(config.model), config.augment, seed=1)
    loader = DataLoader(
        dataset, 6, num_workers=1, collate_fn=collate, worker_init_fn=init_worker, multiprocessing_context="spawn"
    )
    there = torch.cat([batch.images for batch in loader])
    here = torch.stack([torch.from_numpy(dataset[i].image) for i in range(12)])
    assert torch.equal(there, here)
    plain = TrainSet(data, resize_rule(config.model), read_config(project / "base.yaml").augment, seed=1)
    assert not torch.equal(here, torch.stack([torch.from_numpy(plain[i].image) for i in range(12)]))


def test_show_prints_arguments_and_folder(project, capsys):
    assert main(["show", str(project / "all.yaml"), "model.backbone.arguments.width=24"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["model"]["backbone"]["arguments"] == {"width": 24, "depths": [1, 1, 2, 1]}
    assert shown["code"] == [str(project)]
    assert main(["show", str(project / "base.yaml")]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["code"] == []


def test_code_names_other_folders(project, tmp_path):
    (tmp_path / "parts").mkdir()
    part = "def loss(pred, target):\n    return (pred - target).abs().sum(1)"
    (tmp_path / "parts" / "elsewhere_part.py").write_text(part)
    text = f"_base_: {project}/base.yaml\ncode: [parts]\nmodel: {{box: {{loss: elsewhere_part:loss}}}}"
    (tmp_path / "own.yaml").write_text(text)
    config = read_config(tmp_path / "own.yaml")
    assert config.code == (str(tmp_path / "parts"), str(project))
    forget(tmp_path, [entry for entry in sys.path if entry != str(tmp_path / "parts")])
    with pytest.raises(ConfigError, match=r"code: expected a list of text, got 'parts'"):
        read_config(tmp_path / "own.yaml", ["code=parts"])
