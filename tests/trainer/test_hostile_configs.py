"""Configurations of a stranger, and data sets that name files which are none of theirs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from isodet.strict import ConfigError
from runtime.datasets.annotations import DatasetError
from runtime.images.image import write_image
from tests.runtime.test_hostile_annotations import BAD_YAML
from trainer.config.files import _Loader
from trainer.config_reader import read_config
from trainer.prepare.convert import convert

BASE = """data:
  train: {annotations: t.json, images: t}
  val: {annotations: v.json, images: v}
model: {classes: [a], input_size_hw: [64, 64]}
"""


def config_file(folder: Path, text: str = BASE) -> Path:
    path = folder / "c.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("text", BAD_YAML.values(), ids=BAD_YAML)
def test_every_fault_of_yaml_names_the_file(text, tmp_path):
    with pytest.raises(ConfigError, match="c.yaml: not valid YAML"):
        read_config(config_file(tmp_path, text))


@pytest.mark.parametrize("value", ["2001-99-99", "0x_", "!!int foo", "!!bool foo", "&a [*a]"])
def test_overrides_are_read_alike(value, tmp_path):
    path = config_file(tmp_path)
    assert read_config(path).seed == 0
    with pytest.raises(ConfigError, match="override 'seed=.*': the value is not valid YAML"):
        read_config(path, [f"seed={value}"])


@pytest.mark.parametrize("place", ["~nobody-of-that-name/x", "a\\0b"])
@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("init", 'init: "{}"'), ("code", 'code: ["{}"]'), ("data.cache_dir", 'data: {{cache_dir: "{}"}}'),
        ("data.train.annotations", 'data: {{train: {{annotations: "{}"}}}}'),
        ("distill.teacher", 'distill: {{teacher: "{}"}}'), ("model.classes", 'model: {{classes: "{}"}}'),
    ],
)  # fmt: skip
def test_paths_that_lead_nowhere_name_file_and_key(place, key, text, tmp_path):
    with pytest.raises(ConfigError, match=f"c.yaml: {key}: expected a path"):
        read_config(config_file(tmp_path, text.format(place)))


def test_a_base_that_no_file_can_be(tmp_path):
    for name in ("a\\0b", "x" * 300):
        with pytest.raises(ConfigError, match=r"named as _base_ by .*c.yaml"):
            read_config(config_file(tmp_path, f'_base_: "{name}"'))
    with pytest.raises(ConfigError, match="no such file"):
        read_config(config_file(tmp_path, BASE + f"init: {'x' * 300}.pt\n"))


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=-1", "seed"), ("seed=4294967296", "seed"), ('name="a\\0b"', "name"), (f"name={'n' * 300}", "name"),
        ("model.input_size_hw=[100000000000, 64]", "model.input_size_hw"), (f"optim.lr=1{'0' * 400}", "optim.lr"),
        ("model.neck.channels=10000000", "model.neck.channels"),
    ],
)  # fmt: skip
def test_numbers_and_names_beyond_sense_are_refused_when_they_are_read(override, key, tmp_path):
    with pytest.raises(ConfigError, match=f"{key}: expected"):
        read_config(config_file(tmp_path), [override])


class Counted(str):
    """Text that counts how often it is compared."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)


def test_keys_are_not_compared_each_with_each():
    node = yaml.compose("".join(f"k{i}: 1\n" for i in range(500)))
    for key, _ in node.value:
        key.value = Counted(key.value)
    assert len(_Loader("").construct_mapping(node)) == 500
    assert Counted.compared < 5 * 500  # not 500 times 500


@pytest.mark.parametrize("how", ["copy", "link"])
def test_converting_takes_no_file_that_is_no_picture(how, tmp_path):
    secret = tmp_path / "id_rsa"
    secret.write_text("-----BEGIN")
    disguised = tmp_path / "key.jpg"
    disguised.write_text("-----BEGIN")
    folder = tmp_path / "set"
    folder.mkdir()
    write_image(folder / "a.png", np.zeros((8, 8, 3), np.uint8))
    write_image(tmp_path / "other.png", np.zeros((8, 8, 3), np.uint8))

    def annotations(name: str) -> Path:
        images = [{"id": i, "file_name": n, "width": 8, "height": 8} for i, n in enumerate(("a.png", name))]
        content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
        path = tmp_path / "c.json"
        path.write_text(json.dumps(content))
        return path

    for name in (str(secret), "../id_rsa", "../key.jpg"):
        with pytest.raises(DatasetError, match=r"c.json: image 1 names .*, which is not a picture"):
            convert(annotations(name), "yolo", tmp_path / "out", folder, pictures=how)
        assert not (tmp_path / "out").exists()
    done = convert(annotations("../other.png"), "yolo", tmp_path / "out", folder, pictures=how)
    assert any("1 pictures from outside of" in note and "other.png" in note for note in done.notes)
