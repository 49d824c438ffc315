"""Every format gives the same records, told apart by content; what is broken in one image is listed, not fatal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.datasets import annotations as records
from runtime.datasets import fingerprint, read_dataset, tell_format
from runtime.datasets.annotations import EVERY_CLASS, CocoDataset, DatasetError
from tests.at_fault import raises
from tests.runtime.as_found import picture, voc_file, voc_object

Change = Callable[[Path], None]


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """a.png: a cat over the whole, a difficult dog at the left top pixel; b.png: nothing."""
    root = tmp_path / "voc"
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    cat, dog = (voc_object(name, box, f"<difficult>{difficult}</difficult>")
                for name, box, difficult in (("cat", (1, 1, 60, 40), 0), ("dog", (1, 1, 1, 1), 1)))  # fmt: skip
    (root / "Annotations" / "a.xml").write_text(voc_file("a.png", cat, dog))
    (root / "Annotations" / "b.xml").write_text(voc_file("b.png"))
    (root / "ImageSets" / "Main" / "train.txt").write_text("b\n")
    for name in "ab":
        picture(root / "JPEGImages" / f"{name}.png")
    return root


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    """The same without the difficult dog, in the layout of images/train and labels/train."""
    root = tmp_path / "yolo"
    for name in "ab":
        picture(root / "images" / "train" / f"{name}.png")
    (root / "labels" / "train").mkdir(parents=True)
    (root / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 1 1\n")
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nnames: {0: cat, 1: dog}\n")
    (root / "classes.txt").write_text("cat\ndog\n")
    return root


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    root = tmp_path / "list"
    for name in "ab":
        picture(root / "train" / f"{name}.png")
    ann = {"bboxes": [[0, 0, 60, 40]], "labels": [0], "bboxes_ignore": [[0, 0, 1, 1]], "labels_ignore": [1]}
    content = [{"filename": "a.png", "width": 60, "height": 40, "ann": ann}, {"filename": "b.png", "ann": {}}]
    (root / "train.json").write_text(json.dumps(content))
    (root / "train.classes.txt").write_text("cat\ndog\n")
    return root


def whole(data: CocoDataset) -> list[Any]:
    return [
        (r.path.name, r.height, r.width, r.boxes_xyxy.tolist(), [data.class_names[i] for i in r.labels],
         r.crowd.tolist(), r.area.tolist())
        for r in data.records
    ]  # fmt: skip


CAT, DOG = [0, 0, 60, 40], [0, 0, 1, 1]
SAME = [("a.png", 40, 60, [CAT, DOG], ["cat", "dog"], [False, True], [2400, 1]), ("b.png", 40, 60, [], [], [], [])]


def test_voc_folders_and_lists(voc: Path) -> None:
    for source in (voc, voc / "Annotations"):
        assert tell_format(source) == "voc"
        data = read_dataset(source)
        assert whole(data) == SAME and not data.problems and data.class_names == ("cat", "dog")
    listed = read_dataset(voc / "ImageSets" / "Main" / "train.txt", classes=["dog", "cat"])
    assert whole(listed) == SAME[1:] and listed.problems.counts == {records.ABSENT_CLASS: 2}
    before = fingerprint(data)
    (voc / "Annotations" / "b.xml").write_text(voc_file("b.png", voc_object("cat", (2, 2, 3, 3))))
    assert fingerprint(read_dataset(voc)) != before
    (voc / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
    before = fingerprint(read_dataset(voc / "ImageSets" / "Main" / "train.txt"))
    (voc / "Annotations" / "b.xml").unlink()  # which the list still names
    left = read_dataset(voc / "ImageSets" / "Main" / "train.txt")
    assert len(left) == 1 and fingerprint(left) != before


def test_yolo_files_and_folders(yolo: Path) -> None:
    expected = [("a.png", 40, 60, [CAT], ["cat"], [False], [2400]), SAME[1]]
    assert tell_format(yolo / "data.yaml") == tell_format(yolo / "labels") == "yolo"
    assert whole(read_dataset(yolo / "data.yaml", split="train")) == expected
    assert whole(read_dataset(yolo / "labels" / "train")) == expected
    assert whole(read_dataset(yolo / "labels", yolo / "images")) == expected
    with raises(DatasetError, key="val", path=yolo / "data.yaml"):
        read_dataset(yolo / "data.yaml")
    subset = read_dataset(yolo / "data.yaml", classes=["dog"], split="train")
    assert subset.problems.counts == {records.OTHER_CLASS: 1} and subset.class_names == ("dog",)
    with pytest.raises(DatasetError, match="there is no class 'cot'; did you mean 'cat'?"):
        read_dataset(yolo / "data.yaml", classes=["cot"], split="train")
    (yolo / "list.txt").write_text("./images/train/b.png\n")
    assert whole(read_dataset(yolo / "list.txt")) == SAME[1:]


def test_a_json_list(plain: Path) -> None:
    assert tell_format(plain / "train.json") == "list"
    data = read_dataset(plain / "train.json")
    assert whole(data) == SAME and not data.problems
    content = json.loads((plain / "train.json").read_text())
    del content[0]["ann"]["labels_ignore"]
    content[0]["ann"]["labels"] = ["cat"]
    (plain / "train.json").write_text(json.dumps(content))
    assert read_dataset(plain / "train.json").records[0].labels.tolist() == [0, EVERY_CLASS]
    (plain / "train.classes.txt").unlink()
    assert read_dataset(plain / "train.json").class_names == ("cat",)
    content[0]["ann"]["labels"] = [0]
    (plain / "train.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"its labels are numbers; write their class names.*train\.classes\.txt"):
        read_dataset(plain / "train.json")
    assert read_dataset(plain / "train.json", classes=["x", "y"]).records[0].labels.tolist() == [0, EVERY_CLASS]


@pytest.mark.parametrize(
    ("content", "reason", "detail"),
    [
        (voc_file("a.png", voc_object("cat", (1, 1, 60, 40)))[:-3], records.BROKEN_ENTRY, "not well-formed XML"),
        ("<html/>", records.BROKEN_ENTRY, "expected <annotation>"),
        (voc_file("a.png", voc_object("cat", ("x", 1, 6, 4))), records.NO_BBOX, r"object 1 \(cat\): xmin 'x'"),
        (voc_file("a.png", "<object><name>cat</name></object>"), records.NO_BBOX, "xmin None"),
        (voc_file("a.png", voc_object("cat", (5, 1, 4, 4))), records.NO_AREA, "object 1"),
        (voc_file("a.png", voc_object("cat", ("nan", 1, 4, 4))), records.NOT_FINITE, "object 1"),
        (voc_file("a.png", voc_object("cat", (50, 1, 70, 4))), records.CLIPPED, "xmax '70'"),
        (voc_file("a.png", voc_object("cat", (90, 1, 99, 4))), records.OUTSIDE, "object 1"),
        (voc_file("a.png", voc_object("", (1, 1, 9, 4))), records.NO_CLASS, "no name"),
    ],
)
def test_what_is_wrong_in_one_voc_file_is_listed(voc: Path, content: str, reason: str, detail: str) -> None:
    (voc / "Annotations" / "a.xml").write_text(content)
    (voc / "Annotations" / "b.xml").write_text(voc_file("b.png", voc_object("cat", (2, 2, 3, 3))))
    data = read_dataset(voc)
    assert data.problems.counts == {reason: 1} and data.records[-1].boxes_xyxy.tolist() == [[1, 1, 3, 3]]
    (item,) = data.problems.items
    assert item.image_id == 1 and "a.xml" in item.detail
    assert re.search(detail, item.detail)


def test_voc_sizes_and_pictures_that_are_not_where_they_say(voc: Path) -> None:
    (voc / "Annotations" / "a.xml").write_text(voc_file("moved.jpg", voc_object("cat", (1, 1, 60, 40)), size=""))
    assert whole(read_dataset(voc))[0][:4] == ("a.png", 40, 60, [CAT])  # by the name of the XML; by its own size
    (voc / "JPEGImages" / "a.png").unlink()
    assert read_dataset(voc, classes=["cat"], allow_absent=True).problems.counts == {
        records.NO_FILE: 1, records.ABSENT_CLASS: 1,
    }  # fmt: skip
    with raises(DatasetError, path=voc):
        read_dataset(voc)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 0.5 0.5 1", records.NO_BBOX), ("0 0.5 0.5 1 x", records.NO_BBOX), ("2 0.5 0.5 1 1", records.NO_CLASS),
        ("0.5 0.5 0.5 1 1", records.NO_CLASS), ("0 0.5 0.5 0 1", records.NO_AREA), ("0 0.5 0.5 -1 1", records.NO_AREA),
        ("0 nan 0.5 1 1", records.NOT_FINITE), ("0 0.9 0.5 1 1", records.CLIPPED), ("0 3 3 1 1", records.OUTSIDE),
    ],
)  # fmt: skip
def test_what_is_wrong_in_one_yolo_line_is_listed(yolo: Path, line: str, reason: str) -> None:
    (yolo / "labels" / "train" / "b.txt").write_text(f"\n{line}\n1 0.1 0.1 0.2 0.2 0.1 0.3\n")
    data = read_dataset(yolo / "data.yaml", split="train")
    assert data.problems.counts == {reason: 1}
    (item,) = data.problems.items
    assert (item.image_id, item.annotation_id) == (2, 2) and f"b.txt, line 2: {line}" in item.detail
    assert data.records[1].boxes_xyxy[-1] == pytest.approx([6, 4, 12, 12])  # a polygon's bounding box


def test_a_yolo_picture_without_a_size_is_listed(yolo: Path) -> None:
    (yolo / "images" / "train" / "b.png").write_bytes(b"\x89PNG")
    assert read_dataset(yolo / "data.yaml", split="train").problems.counts == {records.NO_SIZE: 1}


@pytest.mark.parametrize(
    ("entry", "reason", "detail"),
    [
        (3, records.BROKEN_ENTRY, "[1]: expected an object"),
        ({"ann": {}}, records.BROKEN_ENTRY, "[1].filename: expected text"),
        ({"filename": "b.png", "width": "60"}, records.BROKEN_ENTRY, "[1].width: expected a whole number"),
        ({"filename": "b.png", "ann": {"bboxes": [[0, 0, 1, 1]]}}, records.BROKEN_ENTRY, "expected 1 labels"),
        ({"filename": "gone.png", "width": 5, "height": 5}, records.NO_FILE, "gone.png"),
        ({"filename": "gone.png"}, records.NO_FILE, "gone.png"),
        ({"filename": "b.png", "ann": {"bboxes": [[0, 0, 1]], "labels": [0]}}, records.NO_BBOX, "[1].ann.bboxes[0]"),
        ({"filename": "b.png", "ann": {"bboxes": [[0, 0, 1, 1]], "labels": [2]}}, records.NO_CLASS, "label 2"),
        ({"filename": "b.png", "ann": {"bboxes": [[0, 0, 1, 1]], "labels": [-1]}}, records.NO_CLASS, "label -1"),
    ],
)
def test_what_is_wrong_in_one_entry_of_a_list_is_listed(plain: Path, entry: Any, reason: str, detail: str) -> None:
    content = json.loads((plain / "train.json").read_text())
    (plain / "train.json").write_text(json.dumps([content[0], entry]))
    data = read_dataset(plain / "train.json")
    assert data.problems.counts == {reason: 1} and detail in data.problems.items[0].detail
    assert whole(data)[0] == SAME[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_text("[]"), "expected a JSON list"),
        (lambda p: p.write_text('[{"image_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}]'), "a list of detections"),
        (lambda p: p.write_text("[1]"), r"none of its 1 images|its labels are numbers"),
        (lambda p: p.write_text("<annotation/>"), "one file of Pascal VOC|not valid JSON"),
        (lambda p: p.mkdir(), "a folder without annotations"),
        (lambda p: (p.mkdir(), (p / "a.xml").touch(), (p / "a.txt").touch()), "format: voc or format: yolo"),
        (lambda p: (p.mkdir(), (p / "a.xml").touch()), "none of its 1 annotations can be used.*no element found"),
        (lambda p: (p.mkdir(), (p / "classes.txt").write_text("a")), "expected pictures in"),
        (lambda p: None, "no such annotation file"),
    ],
)
def test_sources_that_cannot_be_used(tmp_path: Path, make: Change, message: str) -> None:
    source = tmp_path / "source.json"
    make(source)
    with pytest.raises(DatasetError, match=message) as error:
        read_dataset(source)
    assert "source.json" in str(error.value)


def test_voc_lists_of_one_class_are_refused(voc: Path) -> None:
    path = voc / "ImageSets" / "Main" / "cat_train.txt"
    path.write_text("a 1\nb -1\n")
    with pytest.raises(DatasetError, match=r"cat_train\.txt, line 1: expected one name of an image, got 'a 1'"):
        read_dataset(path)
    with pytest.raises(DatasetError, match="it has none of the classes; did you mean 'cat'?"):
        read_dataset(voc, classes=["cot"])
