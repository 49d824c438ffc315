"""Lists of pictures and data.yaml of other machines and of Darknet."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.datasets import annotations as records
from runtime.datasets import read_dataset
from runtime.datasets.annotations import DatasetError
from tests.runtime.as_found import boxes, picture, text, yolo_set


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    return yolo_set(tmp_path / "yolo")


def test_lists_in_the_encodings_of_windows(yolo: Path) -> None:
    picture(yolo / "images" / "b.png")
    text(yolo / "classes.txt", "\ufeffcat\r\ndog\r\n")
    expected = ["a.png", "b.png"]
    lists = {"utf-8-sig": "images/a.png\r\nimages/b.png\r\n", "utf-16": "images/a.png\nimages/b.png",
             "utf-8": "images\\a.png\nimages\\b.png\n"}  # fmt: skip
    for encoding, content in lists.items():
        data = read_dataset(text(yolo / "list.txt", content, encoding))
        assert [record.path.name for record in data.records] == expected and not data.problems.summary()
    text(yolo / "data.yaml", "train: images\nval: images\nnames: [cat, dog]\n", "utf-8-sig")
    assert len(read_dataset(yolo / "data.yaml")) == 2


def test_lists_of_another_machine_are_matched_by_name(tmp_path: Path) -> None:
    root = tmp_path / "darknet"
    for name in ("first", "second"):
        picture(root / "obj" / f"{name}.png")
        text(root / "obj" / f"{name}.txt", "0 0.5 0.5 1 1\n")
    text(root / "obj.names", "car\n")
    for lines in ("/content/project/obj/{}.png", "data/obj/{}.png", "C:\\x\\obj\\{}.png", "/elsewhere/{}.png"):
        text(root / "train.txt", "".join(lines.format(name) + "\n" for name in ("first", "second")))
        data = read_dataset(root / "train.txt")
        assert [record.path for record in data.records] == [root / "obj" / f"{n}.png" for n in ("first", "second")]
        assert len(boxes(data)) == 2 and "2 paths of train.txt are another machine's" in data.problems.summary()
    text(root / "train.txt", "/x/gone1.png\n/x/gone2.png\n")
    with pytest.raises(
        DatasetError, match=r"none of its 2 images can be used; the first: /x/gone1\.png.*another machine"
    ):
        read_dataset(root / "train.txt")
    picture(root / "more" / "first.png")  # a name that two pictures have is neither
    text(root / "train.txt", "/elsewhere/first.png\n/elsewhere/second.png\n")
    assert read_dataset(root / "train.txt").problems.counts == {records.NO_FILE: 1}


def test_darknets_files(tmp_path: Path) -> None:
    root = tmp_path / "cvat"
    picture(root / "obj_train_data" / "a.png")
    text(root / "obj_train_data" / "a.txt", "0 0.5 0.5 1 1\n")
    text(root / "train.txt", "data/obj_train_data/a.png\n")
    text(root / "obj.names", "car\n")
    text(root / "obj.data", "classes = 1\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    for source in ("obj.data", "train.txt", "", "obj_train_data"):
        data = read_dataset(root / source, split="train")
        assert (data.class_names, boxes(data)) == (("car",), [[0, 0, 60, 40]]), source
    assert "obj.data has one list, train" in read_dataset(root / "obj.data", split="val").problems.summary()
    text(root / "obj.data", "train = train.txt\nvalid = gone.txt\nnames = obj.names\n")
    with pytest.raises(DatasetError, match="valid: no such list of pictures"):
        read_dataset(root / "obj.data", split="val")
    for name in ("_darknet.labels", "aerial.names"):
        (root / "obj.names").unlink(missing_ok=True)
        text(root / name, "bus\n")
        assert read_dataset(root / "obj_train_data").class_names == ("bus",)
        (root / name).unlink()


def test_a_data_yaml_of_another_machine(yolo: Path) -> None:
    (yolo / "train").mkdir()
    (yolo / "images").rename(yolo / "train" / "images")
    (yolo / "labels").rename(yolo / "train" / "labels")
    text(yolo / "data.yaml", "train: /content/set/train/images\nval: /content/set/val/images\nnames: [cat, dog]\n")
    data = read_dataset(yolo, split="train")
    assert len(boxes(data)) == 1 and "another machine's path" in data.problems.summary()
    with pytest.raises(DatasetError, match="val: no such folder"):
        read_dataset(yolo, split="val")
