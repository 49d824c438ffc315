"""Folders as machines leave them, files of tools that are not read, and a share of a set for validation."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runtime.datasets import annotations as records
from runtime.datasets import read_dataset, tell_format
from runtime.datasets.annotations import DatasetError
from runtime.images.picture_files import files_in, list_pictures, pictures_in
from tests.at_fault import raises
from tests.runtime.as_found import boxes, picture, text, voc_xml


def test_hidden_and_system_folders_are_no_data(yolo: Path) -> None:
    for name in (".ipynb_checkpoints/a-checkpoint.png", "@eaDir/a.png/THUMB.png", "__MACOSX/a.png", "._b.png"):
        picture(yolo / "images" / name)
    data = read_dataset(yolo)
    assert len(data) == 1 and not data.problems
    voc = yolo.parent / "voc"
    picture(voc / "JPEGImages" / "a.png")
    for folder, x in (("Annotations", 11), ("Annotations/.ipynb_checkpoints", 1)):
        text(voc / folder / "a.xml", voc_xml("a.png", (x, 11, 30, 30)))
    assert boxes(read_dataset(voc)) == [[10, 10, 30, 30]]


def test_below_a_hidden_folder_data_is_data(tmp_path: Path) -> None:
    picture(tmp_path / ".cache" / "set" / "a.png")
    assert [path.name for path in pictures_in(tmp_path / ".cache" / "set")] == ["a.png"]


def test_linked_folders_are_followed_and_circles_end(yolo: Path, tmp_path: Path) -> None:
    picture(tmp_path / "disk" / "b.png")
    picture(tmp_path / "disk" / "in" / "c.png")
    (yolo / "images" / "day2").symlink_to(tmp_path / "disk", target_is_directory=True)
    (tmp_path / "disk" / "in" / "up").symlink_to(tmp_path / "disk", target_is_directory=True)
    (yolo / "images" / "self").symlink_to(yolo / "images", target_is_directory=True)
    for name in ("b", "in/c"):
        text(yolo / "labels" / "day2" / f"{name}.txt", "1 0.5 0.5 1 1\n")
    data = read_dataset(yolo)
    names = [record.path.relative_to(yolo / "images").as_posix() for record in data.records]
    assert names == ["a.png", "day2/b.png", "day2/in/c.png"] and [len(r.labels) for r in data.records] == [1, 1, 1]
    os.symlink(tmp_path / "nothing.png", yolo / "images" / "z.png")
    assert (yolo / "images" / "z.png") in files_in(yolo / "images")
    assert read_dataset(yolo).problems.counts == {records.NO_FILE: 1}


def test_content_says_what_a_picture_is_and_a_folder_tells_what_it_left_out(yolo: Path) -> None:
    jpeg = cv2.imencode(".jpg", np.full((40, 60, 3), 9, np.uint8))[1].tobytes()
    images = yolo / "images"
    for name in ("b.jfif", "c.mpo", "d", "e.mp4"):
        (images / name).write_bytes(jpeg)
    (images / "a.png.bak").write_bytes((images / "a.png").read_bytes())
    (images / "f.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (images / "g.avi").write_bytes(b"RIFF....AVI ")
    (images / "h.mjpeg").write_bytes(jpeg)
    (images / "i.gif").write_bytes(b"GIF89a")
    (images / "notes.doc").write_bytes(b"not a picture")
    found = list_pictures(files_in(images))
    assert [path.name for path in found.pictures] == ["a.png", "b.jfif", "c.mpo", "d", "e.mp4"]
    assert [path.name for path in found.left_out] == ["a.png.bak", "f.heic", "g.avi", "h.mjpeg", "i.gif"]
    data = read_dataset(yolo)
    assert len(data) == 5 and data.problems.counts == {records.LEFT_OUT: 4, records.HEIC: 1}


def test_links_keep_their_own_place(voc: Path, tmp_path: Path) -> None:
    """As the cache of a hub, DVC and git-annex keep data: every file is a link into a store."""
    (tmp_path / "store").mkdir()
    for i, path in enumerate(sorted(p for p in voc.rglob("*") if p.is_file())):
        path.rename(tmp_path / "store" / str(i))
        path.symlink_to(tmp_path / "store" / str(i))
    assert len(read_dataset(voc)) == 2 and len(read_dataset(voc / "ImageSets" / "Main" / "a.txt")) == 1


# From here on: files of other tools
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("annotations.xml", "<?xml version='1.0'?><annotations><version>1.1</version></annotations>", "CVAT's own XML"),
        ("a.json", [{"id": 1, "data": {"image": "a.png"}, "annotations": []}], "a Label Studio task list"),
        ("a.json", [{"image": "a.png", "id": 1, "label": [{"x": 1}]}], "a Label Studio task list"),
        ("a.json", [{"image": "a.png", "annotations": [{"label": "x", "coordinates": {}}]}], "CreateML's JSON"),
        ("a.json", {"shapes": [], "imagePath": "a.png", "imageData": None}, "Labelme's JSON"),
        ("a.json", {"_via_settings": {}, "_via_img_metadata": {}}, "VGG Image Annotator"),
        ("a.json", {"a.png12": {"filename": "a.png", "regions": []}}, "VGG Image Annotator"),
        ("a.json", {"info": {}, "categories": {"label": {}}, "items": []}, "Datumaro's own JSON"),
        ("a.json", {"description": "", "size": {"height": 1}, "objects": []}, "Supervisely's JSON"),
        ("a.json", {"samples": []}, "FiftyOne's own JSON"),
        ("a.tfrecord", "x", "TFRecords"),
    ],
)  # fmt: skip
def test_files_of_other_tools_are_told_what_to_export(tmp_path: Path, name: str, content: Any, message: str) -> None:
    file = text(tmp_path / "set" / name, content if isinstance(content, str) else json.dumps(content))
    for source in (file, file.parent):
        with pytest.raises(DatasetError, match=message) as error:
            read_dataset(source)
        assert name in str(error.value)


def test_a_table_of_objects(tmp_path: Path) -> None:
    head = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
    rows = "a.png,60,40,cat,10,10,30,20\nb.png,0,,dog,1,1,9,9\na.png,60,40,dog,x,1,9,9\nc.png,60,40,,,,,\n"
    for name in "abc":
        picture(tmp_path / "train" / f"{name}.png")
    table = text(tmp_path / "train" / "_annotations.csv", "\ufeff" + (head + rows).replace("\n", "\r\n"))
    for source in (table, table.parent):
        assert tell_format(source) == "list"
        data = read_dataset(source)
        assert data.class_names == ("cat", "dog") and boxes(data) == [[10, 10, 30, 20], [1, 1, 9, 9]]
        assert [r.path.name for r in data.records] == ["a.png", "b.png", "c.png"]
        assert data.problems.counts == {records.NO_BBOX: 1}
    text(table, "image,x1,y1,x2,y2,label\na.png,1,1,9,9,cat\n")
    for source in (table, table.parent):
        with pytest.raises(DatasetError, match=r"_annotations\.csv: not a table that is read: expected the columns"):
            read_dataset(source)


# From here on: a share of a set for validation
def test_a_share_is_the_same_each_time_and_parts_no_copies(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for i in range(20):
        picture(root / "images" / f"{i}.png", shade=i)
        text(root / "labels" / f"{i}.txt", "0 0.5 0.5 1 1\n")
    text(root / "labels" / "classes.txt", "cat\n")

    def names(split: str, share: float = 0.2) -> set[str]:
        return {r.path.name for r in read_dataset(root, split=split, val_share=share).records}

    val, train = names("val"), names("train")
    assert (len(val), len(train)) == (4, 16) and not val & train
    assert names("val") == val and val < names("val", 0.5)
    chosen = sorted(val)[0]
    for copy in ("x1.png", "x2.png", "x3.png"):
        (root / "images" / copy).write_bytes((root / "images" / chosen).read_bytes())
    for split in ("train", "val"):
        assert len({chosen, "x1.png", "x2.png", "x3.png"} & names(split)) in (0, 4)
    for i in range(4):
        picture(root / "images" / f"cow_jpg.rf.{i:032x}.png", shade=100 + i)
    of_cow = [len([n for n in names(split) if n.startswith("cow")]) for split in ("train", "val")]
    assert sorted(of_cow) == [0, 4]
    with pytest.raises(DatasetError, match="a share is for train and val, not for test"):
        names("test")


def test_a_share_of_two_pictures_leaves_one_on_each_side(voc: Path) -> None:
    picture(voc / "JPEGImages" / "b.png", shade=3)  # else the two are copies
    for share in (0.01, 0.99):
        sides = [read_dataset(voc, split=split, val_share=share) for split in ("train", "val")]
        assert [len(side) for side in sides] == [1, 1]
    assert "1 of 2 pictures, by a hash of their names (val_share 0.99)" in sides[0].problems.summary()


# From here on: YOLO's labels, names and data.yaml
@pytest.mark.parametrize(
    ("shape", "line"),
    [("[3, 2]", "0.4 0.5 0.6 0.5 0.5 0.6"), ("[3, 3]", "0.4 0.5 2 0.6 0.5 2 0.5 0.6 1"),
     ("[4, 3]", "0.4 0.5 2 0.6 0.5 2 0.5 0.6 1 0 0 0"), ("[1, 2]", "0.1 0.9")],
)  # fmt: skip
def test_the_box_of_a_pose_is_its_first_four_numbers(yolo: Path, shape: str, line: str) -> None:
    text(yolo / "labels" / "a.txt", f"0 0.5 0.5 0.5 0.5 {line}\n1 0.5 0.5 0.5 0.5\n")
    text(yolo / "data.yaml", f"train: images\nval: images\nkpt_shape: {shape}\nnames: [cat, dog]\n")
    for source in (yolo / "data.yaml", yolo / "labels"):
        data = read_dataset(source)
        assert boxes(data) == [[15, 10, 45, 30]] * 2 and not data.problems, source
    with_one_more = f"0 0.5 0.5 0.5 0.5 {line} 0.1\n"
    text(yolo / "labels" / "a.txt", with_one_more)
    assert read_dataset(yolo).problems.counts == {records.NO_BBOX: 1}


def test_a_pose_without_kpt_shape_is_doubted(yolo: Path) -> None:
    text(yolo / "labels" / "a.txt", "0 0.5 0.5 0.5 0.5 0.4 0.5 2 0.6 0.5 2 0.5 0.6 1 0 0 0\n0 0.1 0.1 1.1 0.2 0.3 0.3")
    data = read_dataset(yolo)
    assert data.problems.counts == {records.KEY_POINTS: 1, records.CLIPPED: 1} and len(boxes(data)) == 1
    text(yolo / "data.yaml", "train: images\nval: images\nkpt_shape: 17\nnames: [cat, dog]\n")
    with pytest.raises(DatasetError, match=r"kpt_shape: expected \[points, 2 or 3\], got '17'"):
        read_dataset(yolo)


@pytest.mark.parametrize(
    ("names", "expected"),
    [("[on, off, yes, no]", ("on", "off", "yes", "no")), ("{'0': car, '1': bus}", ("car", "bus")),
     ("[null, 0x10, 1_000, 12:30, ~]", ("null", "0x10", "1_000", "12:30", "~")), ("{1: y, 0: n}", ("n", "y")),
     ("[1.0, 2001-01-01]", ("1.0", "2001-01-01"))],
)  # fmt: skip
def test_names_are_text_as_written(yolo: Path, names: str, expected: tuple[str, ...]) -> None:
    text(yolo / "data.yaml", f"train: images\nval: images\ntest: null\nnames: {names}\n")
    assert read_dataset(yolo).class_names == expected
    with pytest.raises(DatasetError, match=r"missing key 'test' \(it has: train, val\)"):
        read_dataset(yolo, split="test")


@pytest.mark.parametrize(
    ("names", "message"),
    [("[car, bus, car]", r"the class name 'car' is there twice \(labels 0 and 2\)"), ("{0: a, 2: b}", "without gaps"),
     ("{0: a, 0: b}", "key '0' is there twice"), ("{0: a, x: b}", "without gaps"), ("[[a], b]", "expected a list"),
     ("{0: car, 1: car}", "is there twice")],
)  # fmt: skip
def test_names_that_cannot_be_told_apart_are_refused(yolo: Path, names: str, message: str) -> None:
    text(yolo / "data.yaml", f"train: images\nval: images\nnames: {names}\n")
    with pytest.raises(DatasetError, match=message):
        read_dataset(yolo)


@pytest.mark.parametrize(
    "names",
    ["{0: car, 1o: dog}", "{0: car, null: dog}", "{0: car, true: dog}", "{0: car, 2: dog}", "{0.0: car}", "[[a, b]]"],
)
def test_names_of_mixed_kinds_are_refused(yolo: Path, names: str) -> None:
    text(yolo / "data.yaml", f"train: images\nval: images\nnames: {names}\n")
    with raises(DatasetError, key="names", path=yolo / "data.yaml"):
        read_dataset(yolo)


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("word", ["nan", "inf", "-inf"])
def test_a_polygon_with_a_number_that_is_none(yolo: Path, at: int, word: str) -> None:
    values = ["0.1", "0.1", "0.5", "0.1", "0.5", "0.5"]
    values[at] = word
    text(yolo / "labels" / "a.txt", f"0 {' '.join(values)}\n")
    assert read_dataset(yolo).problems.counts == {records.NOT_FINITE: 1}


def test_a_list_of_names_with_one_twice_is_refused(yolo: Path) -> None:
    text(yolo / "labels" / "classes.txt", "cat\ndog\ncat\n")
    with pytest.raises(DatasetError, match=r"classes\.txt: the class name 'cat' is there twice"):
        read_dataset(yolo / "labels")


def test_label_files_without_a_picture_are_told(yolo: Path) -> None:
    text(yolo / "labels" / "gone.txt", "0 0.5 0.5 0.1 0.1\n1 0.5 0.5 0.2 0.2\n")
    text(yolo / "labels" / "README.txt", "0 of these\n")
    (item,) = read_dataset(yolo).problems.items
    assert item.reason == records.NO_PICTURE and item.detail.endswith("gone.txt (2 objects)")


def test_a_folder_of_labels_that_is_not_there_is_no_background(yolo: Path) -> None:
    (yolo / "labels").rename(yolo / "labelTxt")
    text(yolo / "list.txt", "images/a.png\n")
    text(yolo / "classes.txt", "cat\ndog\n")
    for source in (yolo / "data.yaml", yolo / "list.txt"):
        with pytest.raises(DatasetError, match=r"none of the 1 pictures in .* has a label file there .*labels/a\.txt"):
            read_dataset(source)
    text(yolo / "labels" / "a.txt", "")
    assert len(read_dataset(yolo / "data.yaml")) == 1  # an empty file says that there is nothing


def test_labels_beyond_the_class_list_name_it(yolo: Path) -> None:
    text(yolo / "labels" / "classes.txt", "durian\n")
    text(yolo / "labels" / "a.txt", "2 0.5 0.5 0.2 0.2\n")
    data = read_dataset(yolo / "labels")
    assert data.problems.why().startswith(f"{records.reason_text(1, records.NO_CLASS)}, the first: ")
    assert data.problems.why().endswith("classes.txt names 1 class)") and "line 1: 2 0.5" in data.problems.why()


# From here on: lists of pictures, and Darknet's files
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
