"""What a configuration says of its data: lists of splits, repeats, class files, empty images, formats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from isodet.strict import ConfigError
from models.checkpoint import read_checkpoint
from runtime.datasets.annotations import ABSENT_CLASS, CocoDataset, DatasetError
from runtime.images.image import read_image, write_image
from tests.trainer.tiny import tiny_config
from trainer.check.data import check_data
from trainer.config.train import TrainConfig, dump_config
from trainer.config_reader import read_config
from trainer.data import cache
from trainer.data.cache import Pictures
from trainer.data.datasets import train_data, val_data
from trainer.data.train_set import Sample, TrainSet, resize_rule
from trainer.loop import fit
from trainer.new.config import new_config
from trainer.prepare.convert import convert
from trainer.recipes.shapes import make_shapes


def coco(folder: Path, name: str, classes: list[str], ids: tuple[int, ...] = (1, 2, 3)) -> None:
    """Three pictures: an object of each class, an ignored one, and nothing."""
    annotations = [{"image_id": ids[0], "category_id": c, "bbox": [4, 4, 20, 20]} for c in range(len(classes))]
    annotations.append({"image_id": ids[1], "category_id": 0, "bbox": [1, 1, 30, 30], "iscrowd": 1})
    for i in ids:
        write_image(folder / name / f"{i}.png", np.full((64, 96, 3), i, np.uint8))
    images = [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 96} for i in ids]
    content = {"images": images, "annotations": annotations,
               "categories": [{"id": i, "name": c} for i, c in enumerate(classes)]}  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    coco(tmp_path, "one", ["cat", "dog"])
    coco(tmp_path, "two", ["dog", "cow"])
    coco(tmp_path, "three", ["cow"], (7, 8, 9))
    return tmp_path


def config(folder: Path, train: str, classes: str = "[cat, dog, cow]", *overrides: str) -> TrainConfig:
    path = folder / "c.yaml"
    path.write_text(
        f"data: {{train: {train}, val: {{annotations: one.json}}}}\n"
        f"model: {{classes: {classes}, input_size_hw: [64, 96]}}\n"
    )
    return read_config(path, overrides)


def ids(data: CocoDataset) -> list[int]:
    return [record.id for record in data.records]


TWO = "[{annotations: one.json}, {annotations: two.json, repeat: 2}]"


def test_splits_are_put_together_and_repeated(folder):
    both = config(folder, TWO)
    data = train_data(both)
    assert ids(data) == [1, 2, 3, 4, 5, 6, 4, 5, 6]  # the second file's ids are the first one's: moved up
    assert [r.path.parent.name for r in data.records] == ["one"] * 3 + ["two"] * 6
    assert [r.labels.tolist() for r in data.records[:5]] == [[0, 1], [0], [], [1, 2], [1]]
    assert data.problems.counts == {ABSENT_CLASS: 2} and len(data.files) == 2
    assert ids(train_data(both, repeat=False)) == [1, 2, 3, 4, 5, 6]
    assert ids(train_data(config(folder, "[{annotations: one.json}, {annotations: three.json}]"))) == [1, 2, 3, 7, 8, 9]
    single = config(folder, "{annotations: one.json, repeat: 2}", "[dog]", "data.empty_images=drop")
    assert ids(train_data(single)) == [1, 1]  # neither the ignored box nor nothing is an object
    assert ids(val_data(config(folder, TWO, "[dog]"))) == [1, 2, 3]
    (folder / "resolved.yaml").write_text(dump_config(both))
    assert read_config(folder / "resolved.yaml") == both


@pytest.mark.parametrize(
    ("train", "classes", "message"),
    [
        (TWO, "[cat, dot]", r"one\.json, .*two\.json: none of them has a class 'dot'; it has: cat"),
        ("{annotations: one.json}", "[cat, dot]", r"one\.json: categories: .* class 'dot'; did you mean 'dog'?"),
    ],
)
def test_a_class_that_no_split_has_is_an_error(folder, train, classes, message):
    with pytest.raises(DatasetError, match=message):
        train_data(config(folder, train, classes))


@pytest.mark.parametrize(
    ("train", "overrides", "message"),
    [
        ("[]", [], "data.train: expected at least one split"),
        ("[{anotations: a}]", [], r"unknown key 'data.train\[0\].anotations'; did you mean 'annotations'"),
        ("{annotations: a, repeat: 0}", [], "data.train.repeat: expected 1 or more"),
        ("{annotations: a, format: csv}", [], "data.train.format: expected one of auto, coco, voc, yolo, list"),
        ("3", [], "data.train: expected a mapping of keys or a list of a mapping of keys"),
        (TWO, ["data.val.repeat=2"], "data.val.repeat: expected 1"),
        (TWO, ["data.cache=gpu"], "data.cache: expected one of none, ram, disk"),
        (TWO, ["data.cache_gib=0"], "data.cache_gib: expected a positive number"),
        (TWO, ["data.reduce_to=5"], "data.reduce_to: expected 0, or 32 pixels"),
        (TWO, ["model.classes=gone.txt"], r"model\.classes: expected a list of names, or a text file.*gone\.txt"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(folder, train, overrides, message):
    with pytest.raises(ConfigError, match=message):
        config(folder, train, "[cat]", *overrides)


def test_class_files_and_paths_are_relative_to_the_config(folder):
    (folder / "names.txt").write_text("dog\n\ncat\n")
    c = config(folder, TWO, "names.txt")
    assert c.model.classes == ("dog", "cat")
    assert [split.annotations for split in c.data.train_splits] == [str(folder / f"{n}.json") for n in ("one", "two")]


@pytest.mark.parametrize("to", ["coco", "voc", "yolo", "list"])
def test_every_format_comes_through_new_check_and_training_views(folder, tmp_path, to):
    out = tmp_path / (f"set-{to}.json" if to in ("coco", "list") else f"set-{to}")
    convert(folder / "one.json", to, out, pictures="copy")
    given = out / "labels" if to == "yolo" else out
    c = read_config(new_config(tmp_path / "my.yaml", given, None, given, None), ["model.input_size_hw=[64, 96]"])
    assert c.model.classes == ("cat", "dog") and c.data.val.images is None
    report = check_data(c, tmp_path / "check")
    assert report.train.objects == {"cat": 1, "dog": 1} and report.train.crowds == (0 if to == "yolo" else 1)
    sample = TrainSet(train_data(c), resize_rule(c.model), None)[0]
    assert isinstance(sample, Sample) and np.allclose(sample.boxes_xyxy, [[4, 4, 24, 24]] * 2, atol=1e-4)


def test_pictures_that_are_reduced_take_their_boxes_along(folder):
    data = train_data(config(folder, "{annotations: one.json}", "[cat]"))
    rule = resize_rule(config(folder, TWO).model)
    small = TrainSet(data, rule, None, pictures=Pictures(reduce_to=48))[0]
    assert small is not None and np.allclose(small.boxes_xyxy, [[4, 4, 24, 24]])
    (folder / "one" / "1.png").unlink()
    write_image(folder / "one" / "1.png", np.zeros((10, 96, 3), np.uint8))
    assert TrainSet(data, rule, None, pictures=Pictures(reduce_to=48))[0] is None


def test_a_fit_uses_sampling_and_a_cache_changes_no_weight(tmp_path, monkeypatch):
    make_shapes(tmp_path / "data", train_images=8, val_images=2, size_hw=(64, 64))
    split = f"{{annotations: {tmp_path}/data/train.json, images: {tmp_path}/data/train}}"
    keys = [f"data.train=[{split}, {split[:-1]}, repeat: 2}}]", "data.sampling=class_balanced",
            "data.repeat_threshold=1", "schedule.epochs=1"]  # fmt: skip
    decoded: list[Path] = []
    monkeypatch.setattr(cache, "read_image", lambda path: (decoded.append(path), read_image(path))[1])
    weights, counts = [], []
    for kind in ("none", "ram"):
        run = fit(tiny_config(tmp_path / "data", *keys, f"data.cache={kind}"), tmp_path / kind, quiet=True).run
        content = read_checkpoint(run / "last.pt")
        weights.append(content["model"])
        counts.append(len(decoded))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    # Every image is in three copies in an epoch, at the least; from the cache each picture is decoded once.
    assert counts[0] >= 24 and counts[1] - counts[0] == 8
    assert set(content["card"]["hashes"]) == {"train_annotations", "val_annotations"}
