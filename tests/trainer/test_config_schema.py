"""The configuration as JSON Schema and as a page: both say what the reader takes, and docs/config.md is current."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from isodet.strict import ConfigError, dotted_keys
from trainer.__main__ import main
from trainer.config.files import read_mapping
from trainer.config.reference import config_markdown
from trainer.config.schema import config_schema, keys_of, parts_of
from trainer.config.train import TrainConfig, dump_config
from trainer.config_reader import train_config
from trainer.new.config import RECIPES

ROOT = Path(__file__).parents[2]
GOOD: dict[str, Any] = {
    "data": {"train": {"annotations": "a.json"}, "val": {"annotations": "b.json"}},
    "model": {"classes": ["ant", "bee"], "backbone": {"name": "resnet18"}, "assign": {"kind": "atss"}},
    "augment": {"mosaic": {"probability": 0.5}, "torchvision": [{"RandomPosterize": {"bits": 4}}]},
    "schedule": {"epochs": 20}, "qat": None, "batch_size": "auto",
}  # fmt: skip


@pytest.fixture(scope="module")
def refused() -> Callable[[Any], bool]:
    """Whether the schema refuses a configuration, as JSON has it."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema, of the extra test, is not installed")
    validator = jsonschema.Draft202012Validator(config_schema())
    validator.check_schema(config_schema())
    return lambda config: not validator.is_valid(config)


def changed(key: str, value: Any) -> dict[str, Any]:
    """`GOOD` with `value` under the dotted `key`; without the key for a value of `...`."""
    config = copy.deepcopy(GOOD)
    section = config
    *above, last = key.split(".")
    for name in above:
        section = section.setdefault(name, {})
    section[last] = value
    if value is ...:
        del section[last]
    return config


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/**/*.yaml")), ids=lambda path: path.name)
def test_every_recipe_of_configs_fits(path, refused):
    assert not refused(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert not refused(json.loads(json.dumps(read_mapping(path))))  # with what lies below it


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_that_new_writes_fit(recipe, tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    assert main(["new", recipe, "--quiet"]) == 0
    paths = list(tmp_path.glob("*/*.yaml"))
    assert paths and not any(refused(json.loads(json.dumps(read_mapping(path)))) for path in paths)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1), ("model.detector", "fcos"), ("data.train", [{"annotations": "a"}, {"annotations": "c"}]),
        ("model.backbone.name", "timm:convnext_tiny"), ("qat", {"images": 3}), ("optim.lr", 1), ("data.workers", 0),
        ("augment.auto.policy", [[["rotate", 0.5, 3]]]), ("model.loss.alpha", None), ("augment.noise", {}),
        ("log", []), ("model.backbone.norm_eps", 0.001), ("schedule.preset", "2x"),
    ],
)  # fmt: skip
def test_what_the_reader_takes_the_schema_takes(key, value, refused):
    config = {**changed(key, value), "batch_size": 4, "init": "a.pt"}
    train_config(config)
    assert not refused(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optim.rl", 0.1), ("optimizer", {}), ("optim.lr", "fast"), ("optim.kind", "sdg"), ("schedule.epochs", 1.5),
        ("channels_last", 1), ("channels_last", "no"), ("seed", True), ("optim.lr", False), ("name", None),
        ("model.detector", "yolo"), ("model.classes", [1, 2]), ("model.classes", ...), ("model", ...), ("data", ...),
        ("data.val", ...), ("data.train", {}), ("data.train", [{"images": "x"}]), ("data.train", "a.json"),
        ("data.train", [{"annotations": "x", "anotations": 1}]), ("model.input_size_hw", [320]),
        ("model.input_size_hw", [320, "x"]), ("model.neck.levels", [3, 4, 5]), ("model.backbone.name", "resnet51"),
        ("model.backbone.name", "timm:"), ("model.backbone.name", "a.b:2"), ("model.assign.kind", "my.module:"),
        ("model.assign.kind", ":Name"), ("model.neck.kind", "nas_fpn"), ("distill", {"logits": 1.0}), ("qat", 3),
        ("augment.own", [{"probability": 0.5}]), ("augment.noise.sigm", [1, 2]), ("augment.noise.sigma", [1]),
        ("augment.torchvision", {"RandomPosterize": {}}), ("augment.auto.policy", [[["rotate", 0.5]]]),
        ("augment.auto.policy", "v1"), ("batch_size", "all"), ("data.val.voc_origin", 2), ("log", ["tensorboard"]),
        ("_base_", 3),
    ],
)  # fmt: skip
def test_what_the_reader_refuses_the_schema_refuses(key, value, refused):
    config = changed(key, value)
    with pytest.raises(ConfigError) as caught:
        train_config(config)
    assert caught.value.key is not None
    assert refused(config) and not refused(GOOD)


def test_what_a_file_below_may_have_is_not_asked_for(refused):
    assert not refused({"_base_": "coco.yaml", "data": {"val": {"images": "x"}}, "distill": {"region": 0.1}})
    assert not refused({"data": GOOD["data"], "init": "best.pt"})
    assert not refused(changed("model.classes", "names.txt"))  # which read_config reads
    assert refused({"data": GOOD["data"]}) and refused({})
    assert refused({"_base_": "coco.yaml", "data": {"train": [{"images": "x"}]}})  # lists are not merged


def test_a_resolved_configuration_fits(refused):
    assert not refused(yaml.safe_load(dump_config(train_config({**GOOD, "batch_size": 4}))))


def test_every_key_is_explained():
    def keys(part: Any, path: str = "") -> list[str]:
        names = []
        for key in keys_of(part, path):
            assert len(key.text) > 5, key.key
            names += [key.key, *(name for below in parts_of(key.hint)[:1] for name in keys(below, key.key))]
        return names

    assert set(keys(TrainConfig)) == set(dotted_keys(TrainConfig))


def test_the_page_is_current(capsys):
    assert main(["show", "--markdown"]) == 0
    written = capsys.readouterr().out
    assert written == config_markdown()
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert page == written, "run: trainer show --markdown > docs/config.md"


def test_links_of_the_page_lead_somewhere():
    page = config_markdown()
    headings = {
        re.sub(r"[^\w -]", "", line[3:].lower()).replace(" ", "-") for line in page.splitlines() if line[:3] == "## "
    }
    targets = re.findall(r"\]\(([^)]+)\)", page)
    assert len(headings) > 25 and len(targets) > 25
    for target in targets:
        assert target[1:] in headings if target.startswith("#") else (ROOT / "docs" / target).is_file(), target


def test_show_prints_the_schema_without_a_config(capsys):
    assert main(["show", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    lr = schema["properties"]["optim"]["properties"]["lr"]
    assert (lr["type"], lr["default"]) == ("number", 0.01) and lr["description"]
    for wrong in (["show"], ["show", "--schema", "--markdown"]):
        with pytest.raises(SystemExit) as stopped:
            main(wrong)
        assert stopped.value.code == 2
