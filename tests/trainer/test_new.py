"""`trainer new` writes configs that load, whatever the data look like, and says why in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from isodet.strict import ConfigError, to_mapping
from models.config.model import PRESETS
from runtime.card.card import Card
from runtime.datasets.annotations import DatasetError
from runtime.datasets.coco import read_coco
from runtime.runs import validation_data
from runtime.tiles import Tiles
from tests.at_fault import raises
from tests.trainer.tiny import edit
from tests.trainer.voc_set import voc_set
from trainer.config.train import TrainConfig
from trainer.config_reader import read_config
from trainer.data.datasets import train_data, val_data
from trainer.loop import fit
from trainer.new import config as new
from trainer.new.advice import (
    Hardware,
    choose_anchor_size,
    choose_batch,
    choose_epochs,
    choose_flip,
    choose_levels,
    choose_rate,
)
from trainer.new.config import new_config, new_recipe
from trainer.recipes import RecipeError, make_shapes

CPU = Hardware("cpu", "a CPU with 2 cores", 0.0)
GPU = Hardware("gpu", "Some GPU", 24.0)
ODD_NAMES = ["no", "1", "a: b", 'say "hi"', "it's", "größe 日本", "# x", "null", "- y", "{a}", "back\\slash", "🚦",
             "two\nlines", " padded ", "*ref", "1e3", "~", "%d", "tab\there", "x" * 300]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests ask no server; the one test about it says what was answered."""
    monkeypatch.setattr("models.backbones.weights.Published.reachable", lambda self: False)
    monkeypatch.setattr("models.backbones.weights.Published.here", False)


@pytest.fixture(params=[CPU, GPU], ids=["cpu", "gpu"])
def hardware(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Hardware:
    monkeypatch.setattr(new, "this_hardware", lambda: request.param)
    return request.param


def _write(folder: Path, names: dict[int, str], images=3, hw=(480, 640), side=40, each=3) -> tuple[Path, ...]:
    """A split pair whose pictures are only names: nothing here decodes them."""
    ids = list(names)
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        for i in range(images):
            (folder / split / f"{i}.jpg").touch()
        annotations = [
            {"id": n, "image_id": n // each, "category_id": ids[n % len(ids)], "bbox": [5, 5, side, side],
             "area": side**2, "iscrowd": 0}
            for n in range(images * each)
        ]  # fmt: skip
        coco = {
            "images": [{"id": i, "file_name": f"{i}.jpg", "height": hw[0], "width": hw[1]} for i in range(images)],
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for i, name in names.items()],
        }
        (folder / f"{split}.json").write_text(json.dumps(coco), encoding="utf-8")
    return folder / "train.json", folder / "train", folder / "val.json", folder / "val"


def made(folder: Path, size: int | None = None, detector: Any = "atss", **data: Any) -> TrainConfig:
    """What is written for data of one class, as `_write` makes them of `data`."""
    paths = _write(folder / "d", {1: "cat"}, **data)
    return read_config(new_config(folder / "a.yaml", *paths, size=size, detector=detector))


def test_gaps_in_category_ids_and_odd_names(tmp_path, hardware):
    names = {7 + 3 * i: name for i, name in enumerate(ODD_NAMES)}
    data = _write(tmp_path / "data", names, each=len(names))
    out = new_config(tmp_path / "my.yaml", *data)
    config = read_config(out)
    assert config.model.classes == tuple(ODD_NAMES)
    dataset = read_coco(config.data.train.annotations, config.data.train.images, config.model.classes)
    assert dataset.category_ids == tuple(names) and len(dataset.problems) == 0


@pytest.mark.parametrize("detector", PRESETS)
@pytest.mark.parametrize("images", [1, 2, 700])
def test_complete_for_any_number_of_images(tmp_path, hardware, detector, images):
    config = made(tmp_path, detector=detector, images=images)
    assert config.model.detector == detector and config.name == "a"
    assert config.batch_size <= max(1, images // 4)
    steps = config.schedule.epochs * max(1, images // config.batch_size)
    assert steps <= 20_000 and config.schedule.warmup_steps <= max(1, steps // 10)
    assert config.val_interval <= config.schedule.epochs


@pytest.mark.parametrize(("images", "size", "norm"), [(700, 640, "sepbn"), (700, 64, "sepbn"), (3, 64, "gn")])
def test_the_heads_norm_has_enough_to_count(tmp_path, hardware, images, size, norm):
    """Batches of one picture of 64 px have 4 cells on the last level: no statistics for a BatchNorm."""
    assert made(tmp_path, size, images=images, hw=(640, 640)).model.head.norm == norm


def test_paths_are_relative_to_the_yaml(tmp_path, hardware):
    data = _write(tmp_path / "some data", {1: "cat"})
    out = new_config(tmp_path / "configs" / "deep" / "my.yaml", *data)
    plain = yaml.safe_load(out.read_text(encoding="utf-8"))
    assert plain["data"]["train"] == {"annotations": "../../some data/train.json", "images": "../../some data/train"}
    assert read_config(out).data.val.images == str((tmp_path / "some data" / "val").resolve())
    (tmp_path / "configs").rename(tmp_path / "moved")  # with the same depth it still finds its data
    train = read_config(tmp_path / "moved" / "deep" / "my.yaml").data.train
    read_coco(train.annotations, train.images)


@pytest.mark.parametrize(
    ("hw", "size", "expected"),
    [
        ((1080, 1920), 640, (384, 640)),
        ((1920, 1080), 640, (640, 384)),
        ((480, 640), 320, (256, 320)),
        ((500, 500), 100, (128, 128)),
        ((100, 4000), 640, (64, 640)),
        ((120, 160), None, (128, 160)),  # no larger than the pictures
    ],
)
def test_input_size_keeps_the_aspect(tmp_path, hardware, hw, size, expected):
    assert made(tmp_path, size, hw=hw).model.input_size_hw == expected


def test_smaller_objects_ask_for_a_larger_input(tmp_path, hardware):
    sizes = [made(tmp_path / str(n), hw=(1080, 1920), side=n).model.input_size_hw for n in (200, 80, 10)]
    assert sizes[0] == (192, 320)
    assert sizes[0] < sizes[1] < sizes[2] == ((288, 512) if hardware is CPU else (576, 1024))


def test_portrait_and_landscape_mixed_is_square(tmp_path, hardware):
    data = _write(tmp_path / "d", {1: "cat"}, 4)
    images = json.loads(data[0].read_text())["images"]
    for image in images[:2]:
        image["height"], image["width"] = 640, 480
    edit(data[0], images=images)
    height, width = read_config(new_config(tmp_path / "a.yaml", *data)).model.input_size_hw
    assert height == width


def test_comments_name_the_numbers_of_the_data(tmp_path, hardware):
    data = _write(tmp_path / "d", {1: "cat"}, images=40, side=46, each=5)
    text = new_config(tmp_path / "a.yaml", *data, size=320).read_text(encoding="utf-8")
    assert "200 training objects; the median one is 23 px" in text  # 46 px at 640, half at 320
    assert "at most 5 objects" in text and hardware.name in text and "as asked" in text


def test_many_objects_in_one_image_raise_the_number_of_detections(tmp_path, hardware):
    assert made(tmp_path, images=2, each=190).model.postprocess.detections == 250


def test_classes_without_objects_are_left_out_and_named(tmp_path, hardware):
    data = _write(tmp_path / "d", {0: "everything", 1: "cat", 2: "dog"}, images=4)
    for path in (data[0], data[2]):  # as some exporters write a root category that no box has
        annotations = [a for a in json.loads(path.read_text())["annotations"] if a["category_id"] != 0]
        edit(path, annotations=annotations)
    out = new_config(tmp_path / "a.yaml", *data)
    assert read_config(out).model.classes == ("cat", "dog")
    assert "left out, without an object in train: 'everything'" in out.read_text(encoding="utf-8")


def test_refusals_leave_nothing_behind(tmp_path, hardware):
    data = _write(tmp_path / "d", {1: "cat"})
    out = tmp_path / "a.yaml"
    out.write_text("mine")
    with pytest.raises(ConfigError, match="already exists"):
        new_config(out, *data)
    assert out.read_text() == "mine"
    new_config(out, *data, force=True)
    assert read_config(out).model.classes == ("cat",)
    with pytest.raises(ConfigError, match="ends in .yaml"):
        new_config(tmp_path / "a.json", *data)
    with pytest.raises(ConfigError, match="64 to 4096, got 20"):
        new_config(tmp_path / "b.yaml", *data, size=20)
    with raises(DatasetError, path=tmp_path / "nothing.json"):
        new_config(tmp_path / "b.yaml", tmp_path / "nothing.json", *data[1:])
    edit(data[2], categories=[{"id": 1, "name": "cats"}])
    with pytest.raises(DatasetError, match="cat"):
        new_config(tmp_path / "b.yaml", *data)
    edit(data[0], annotations=[])
    with pytest.raises(ConfigError, match="none of its 3 images has an object"):
        new_config(tmp_path / "b.yaml", *data)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.yaml", "d"]


@pytest.mark.parametrize(
    ("classes", "flip"),
    [(["0", "1", "2"], "0"), (["a", "b", "plate"], "0"), (["turn_left", "turn_right"], "0"),
     (["LeftHand", "RightHand"], "0"), (["cat", "dog"], "0.5"), (["copyright", "leftover"], "0.5"),
     (["x", "car", "bus", "truck"], "0.5")],
)  # fmt: skip
def test_flip_is_off_where_a_mirror_changes_the_class(classes, flip):
    assert choose_flip(classes).value == flip


def test_choices_by_table():
    assert choose_rate("efficientnet_lite0", "imagenet")[0] == 4e-3  # where it was measured, and nowhere else
    assert choose_rate("resnet18", "imagenet")[0] == choose_rate("efficientnet_lite0", "checkpoint")[0] == 1e-3
    assert choose_rate("efficientnet_lite0", "scratch")[0] == 3e-3
    assert choose_epochs(50_000, 16, GPU).value == "12"
    assert int(choose_epochs(800, 16, GPU).value) == 200
    assert choose_epochs(10, 1, GPU).value == "300"
    assert choose_epochs(1_000, 8, CPU).value == "24"
    assert choose_batch((640, 640), 10_000, GPU).value == "16"
    assert choose_batch((1024, 1024), 10_000, Hardware("gpu", "x", 8.0)).value == "2"
    assert choose_batch((320, 320), 10_000, CPU).value == "8"
    assert choose_batch((640, 640), 9, CPU).value == "2"
    many = np.linspace(1, 1, 100)
    ones = np.ones((100, 2))
    assert choose_anchor_size(ones * 64, (3, 5)) is None  # the default's side on P3
    assert choose_anchor_size(ones * 40, (3, 5)).value == "4"  # 32: the largest that fits
    assert choose_anchor_size(ones * 17, (3, 5)).value == "2"
    assert choose_anchor_size(np.concatenate([ones * 17, ones * 70, ones * 150]), (3, 6)).value == "2"
    assert choose_anchor_size(ones * [300, 10], (3, 5)) is None  # nothing fits
    assert choose_levels(many * 8, (640, 640), GPU).value == "[2, 5]"
    assert choose_levels(many * 8, (640, 640), CPU).value == "[3, 5]"
    assert choose_levels(many * 400, (640, 640), GPU).value == "[3, 7]"
    assert choose_levels(many * 300, (64, 320), GPU).value == "[3, 5]"  # P6 would be one cell high


def test_recipes(tmp_path):
    calls: list[tuple[int, int]] = []
    path = new_recipe("shapes", tmp_path / "shapes", progress=lambda done, total: calls.append((done, total)))
    assert path == tmp_path / "shapes" / "shapes.yaml" and read_config(path).name == "shapes"
    assert calls[-1] == (300, 300)
    with raises(RecipeError, path=tmp_path / "shapes"):
        new_recipe("shapes", tmp_path / "shapes")
    with pytest.raises(ConfigError, match="one of digits, shapes"):
        new_recipe("digit", tmp_path / "x")


def test_without_weights_it_trains_from_scratch_and_says_how_to_get_some(tmp_path, hardware):
    path = new_config(tmp_path / "c.yaml", *_write(tmp_path / "data", {1: "a"}))
    assert read_config(path).model.backbone.weights is None
    assert "did not answer" in path.read_text() and "trainer weights" in path.read_text()


@pytest.mark.parametrize(("where", "backbone"), [("here", "efficientnet_lite0"), ("reachable", "resnet18")])
def test_the_best_weights_at_hand_are_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, backbone: str
) -> None:
    """A file that is here before one that a server would give: nothing is left to a network."""
    monkeypatch.setattr(new, "this_hardware", lambda: CPU)
    published = "models.backbones.weights.Published"
    monkeypatch.setattr(f"{published}.reachable", lambda self: self.source == "torchvision")
    if where == "here":
        monkeypatch.setattr(f"{published}.here", property(lambda self: self.source != "torchvision"))
    config = read_config(new_config(tmp_path / "c.yaml", *_write(tmp_path / "data", {1: "a"})))
    assert (config.model.backbone.name, config.model.backbone.weights) == (backbone, "imagenet")
    assert (config.model.pixels.mean[0] == 127) == (backbone == "efficientnet_lite0")


def test_the_written_config_trains_as_it_is(tmp_path):
    """Real pictures, from the shapes recipe; only the length of the run is cut."""
    d = tmp_path / "d"
    make_shapes(d, train_images=8, val_images=4)
    path = new_config(tmp_path / "my.yaml", d / "train.json", d / "train", d / "val.json", d / "val", size=64)
    result = fit(read_config(path, ["schedule.epochs=1"]), tmp_path / "runs", quiet=True)
    assert result.best.is_file() and result.run.name == "my"


def test_a_share_for_validation_where_a_data_set_has_no_split(tmp_path):
    data = voc_set(tmp_path / "set", {f"p{i}": (11, 11, 40, 40) for i in range(10)})
    path = new_config(tmp_path / "c.yaml", data, None, None, None, val_share=0.2)
    config = read_config(path)
    lists = [tmp_path / f"c.{split}.txt" for split in ("train", "val")]
    assert [config.data.train.pictures, config.data.val.pictures] == [str(path) for path in lists]
    train, val = train_data(config), val_data(config)
    sides = [{record.path for record in part.records} for part in (train, val)]
    assert [len(side) for side in sides] == [8, 2] and not sides[0] & sides[1]
    assert "8 training and 2 validation images" in path.read_text() and "no picture is in both" in path.read_text()
    nms = {"kind": "portable", "iou": 0.5, "candidates": 10, "detections": 10}
    card = Card("checkpoint", ("a",), (64, 64), 0.05, nms, training={"data": to_mapping(config.data)})
    assert {record.path for record in validation_data(card, "best.pt").records} == sides[1]
    assert sorted(line for path in lists for line in path.read_text().splitlines()) == [f"p{i}.png" for i in range(10)]
    shares = [f"data.{split}.{key}" for split in ("train", "val") for key in ("pictures=null", "val_share=0.2")]
    before = read_config(path, shares)  # as earlier versions wrote it
    assert [len(part) for part in (train_data(before), val_data(before))] == [8, 2]
    with pytest.raises(ConfigError, match=r"val_share: expected 0\.2 in train as in val"):
        read_config(path, [*shares, "data.train.val_share=0.5"])
    with raises(ConfigError, key="data.train.pictures", path=path):
        read_config(path, ["data.train.pictures=null"])  # it would train on what validates
    with raises(ConfigError, key="data.train.val_share", path=path):
        read_config(path, ["data.train.val_share=0.2"])
    for arguments in ({"val_share": 0.0}, {"val_share": 1.5}):
        with pytest.raises(ConfigError, match="val_share"):
            new_config(tmp_path / "d.yaml", data, None, None, None, **arguments)
    with pytest.raises(ConfigError, match="not both"):
        new_config(tmp_path / "d.yaml", data, None, data, None, val_share=0.2)
    path.unlink()
    with pytest.raises(ConfigError, match=r"c\.train\.txt: already exists"):
        new_config(path, data, None, None, None, val_share=0.2)
    one = voc_set(tmp_path / "one", {"a": (11, 11, 40, 40)})
    for arguments in ({"val_share": 0.0}, {"val_share": 1.0}, {"train": one, "val_share": 0.2}):
        with raises(ConfigError, key="val_share"):
            new_config(tmp_path / "d.yaml", **{"train": data, "train_images": None, "val": None, "val_images": None}
                       | arguments)  # fmt: skip
    assert not [file for file in tmp_path.iterdir() if file.name.startswith("d.")]


def test_one_origin_for_both_splits(tmp_path):
    train = voc_set(tmp_path / "train", {"a": (0, 11, 40, 40), "b": (11, 11, 40, 40)})
    val = voc_set(tmp_path / "val", {"c": (11, 11, 40, 40)})  # nothing in it proves what it counts from
    config = read_config(new_config(tmp_path / "c.yaml", train, None, val, None))
    assert config.data.train.voc_origin == config.data.val.voc_origin == 0
    assert val_data(config).records[0].boxes_xyxy.tolist() == [[11, 11, 40, 40]]
    assert not val_data(config).problems.summary()


def test_the_format_that_content_does_not_settle(tmp_path):
    folder = voc_set(tmp_path / "set", {"a": (11, 11, 40, 40), "b": (11, 11, 40, 40)})
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in [*folder.glob("*/*.png"), *folder.glob("*/*.xml")]:
        path.rename(flat / path.name)
    (flat / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DatasetError, match="trainer new: --format"):
        new_config(tmp_path / "c.yaml", flat, None, flat, None)
    config = read_config(new_config(tmp_path / "c.yaml", flat, None, flat, None, format="voc"))
    assert config.data.train.format == config.data.val.format == "voc" and len(train_data(config)) == 2


def test_nothing_to_train_or_validate_on_says_why(tmp_path):
    data = voc_set(tmp_path / "set", {"a": (11, 11, 40, 40)})
    for split, lines in (("good", "0 0.5 0.5 0.2 0.2\n"), ("bad", "2 0.5 0.5 0.2 0.2\n")):
        (tmp_path / split / "labels").mkdir(parents=True)
        (tmp_path / split / "images").mkdir()
        (tmp_path / split / "images" / "a.png").write_bytes((data / "JPEGImages" / "a.png").read_bytes())
        (tmp_path / split / "labels" / "a.txt").write_text(lines)
        (tmp_path / split / "labels" / "classes.txt").write_text("durian\n")
    why = r"1 object without a known class \(skipped\), the first: .*a\.txt, line 1: 2 0\.5.*names 1 class"
    for train, val, word in (("bad", "good", "trained on"), ("good", "bad", "validated on")):
        with pytest.raises(ConfigError, match=f"an object that can be {word}: {why}"):
            new_config(tmp_path / "c.yaml", tmp_path / train, None, tmp_path / val, None)


def test_links_are_written_as_links(tmp_path):
    data = _write(tmp_path / "data", {1: "a"})
    links = [tmp_path / "hub" / path.name for path in data]
    links[0].parent.mkdir()
    for link, path in zip(links, data, strict=True):
        link.symlink_to(path)
    config = read_config(new_config(tmp_path / "c.yaml", *links))
    assert config.data.train.annotations == str(links[0]) and config.data.val.images == str(links[3])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "here").symlink_to(tmp_path / "elsewhere")
    config = read_config(new_config(tmp_path / "here" / "c.yaml", *links))  # the config in a linked folder
    assert config.data.train.annotations == str(links[0])


def test_small_objects_in_large_pictures_get_a_line_for_tiles(tmp_path, hardware):
    made(tmp_path / "large", size=640, hw=(3000, 4000), side=40)
    text = (tmp_path / "large" / "a.yaml").read_text()
    (line,) = (line for line in text.splitlines() if "# tiles: " in line)
    assert (
        "below 6 px at this size and below 40 px in tiles" in line and "65 times as long" in line
    )  # 8 x 8 tiles, and the whole
    (tmp_path / "large" / "a.yaml").write_text(text.replace("# tiles: ", "tiles: "))
    tiles = read_config(tmp_path / "large" / "a.yaml").data.tiles
    assert tiles is not None and tiles.rule == Tiles(overlap=0.2)
    made(tmp_path / "near", size=640, hw=(3000, 4000), side=300)
    made(tmp_path / "small", size=640, hw=(480, 640), side=8)  # as large as they will ever be
    assert not any("tiles:" in (tmp_path / name / "a.yaml").read_text() for name in ("near", "small"))
