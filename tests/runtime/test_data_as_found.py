"""Data as people have it: what tools, machines and file systems make of the formats is read right, or told."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runtime.datasets import annotations as records
from runtime.datasets import read_dataset, read_split, tell_format
from runtime.datasets.annotations import CocoDataset, DatasetError, flag_of, rotation_of, turned_bounds
from runtime.images.image import write_image
from runtime.images.picture_files import files_in, list_pictures, pictures_in


def picture(path: Path, hw: tuple[int, int] = (40, 60), shade: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.full((*hw, 3), shade, np.uint8))
    return path


def text(path: Path, content: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode(encoding))
    return path


def boxes(data: CocoDataset) -> list[list[float]]:
    return [box for record in data.records for box in record.boxes_xyxy.tolist()]


# ---------------------------------------------------------------------------------------------
# COCO


@pytest.fixture
def coco(tmp_path: Path) -> Any:
    """Writes a COCO file of a.png, 60x40, with one object for each mapping, and more keys of the whole."""
    picture(tmp_path / "images" / "a.png")

    def write(*objects: dict[str, Any], **whole: Any) -> Path:
        base = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 10]}
        content = {
            "images": [{"id": 1, "file_name": "a.png", "width": 60, "height": 40}],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
            "annotations": [{"id": i} | base | more for i, more in enumerate(objects)],
        }
        return text(tmp_path / "images.json", json.dumps(content | whole))

    return write


@pytest.mark.parametrize(
    ("value", "crowd"),
    [("0", False), ("false", False), ("False", False), (None, False), (float("nan"), False), ("", False), (0.0, False),
     ("1", True), ("true", True), (True, True), (1.0, True)],
)  # fmt: skip
def test_iscrowd_as_tools_write_it(coco: Any, value: Any, crowd: bool) -> None:
    data = read_dataset(coco({"iscrowd": value}))
    assert data.records[0].crowd.tolist() == [crowd] and not data.problems


@pytest.mark.parametrize("value", ["maybe", 2, -1, [1], {}])
def test_an_iscrowd_that_says_neither_is_told(coco: Any, value: Any) -> None:
    data = read_dataset(coco({"iscrowd": value}, {}))
    assert data.records[0].crowd.tolist() == [False, False] and data.problems.counts == {records.BAD_FLAG: 1}
    assert "iscrowd" in data.problems.items[0].detail
    assert flag_of(value) is None


def test_a_turned_box_becomes_its_upright_bounds(coco: Any) -> None:
    turned = {"bbox": [20, 15, 20, 10], "area": 200.0, "attributes": {"occluded": False, "rotation": 90.0}}
    data = read_dataset(coco(turned, turned | {"attributes": {"rotation": 180}}, turned | {"attributes": {}}))
    assert boxes(data) == [[25, 10, 35, 30], [20, 15, 40, 25], [20, 15, 40, 25]]
    assert data.problems.counts == {records.TURNED: 1} and data.records[0].area.tolist() == [200, 200, 200]


def test_turned_bounds_hold_the_turned_corners() -> None:
    box, degrees = (10.0, 20.0, 50.0, 30.0), 333.0
    angle = np.deg2rad(degrees)
    corners = np.array([(x, y) for x in (10, 50) for y in (20, 30)]) - (30, 25)
    around = corners @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) + (30, 25)
    assert turned_bounds(box, degrees) == pytest.approx((*around.min(0), *around.max(0)))
    assert [rotation_of(value) for value in ("90.0", 0, 360, "x", None, float("nan"), [3])] == [90, 0, 0, 0, 0, 0, 0]


def test_sizes_that_the_file_does_not_say_are_the_pictures_own(coco: Any, tmp_path: Path) -> None:
    for image in ({"width": 0, "height": 0}, {}, {"width": None, "height": 40}):
        data = read_dataset(coco({}, images=[{"id": 1, "file_name": "a.png"} | image]))
        assert (data.records[0].height, data.records[0].width) == (40, 60) and boxes(data) == [[10, 10, 30, 20]]
    (tmp_path / "images" / "b.png").write_bytes(b"no picture")
    rows = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}, {"id": 3, "file_name": "c.png"}]
    data = read_dataset(coco({}, {"image_id": 2}, images=rows))
    assert data.problems.counts == {records.NO_SIZE: 1, records.NO_FILE: 1} and len(data) == 1


def test_ids_that_are_text(coco: Any) -> None:
    image = {"file_name": "a.png", "width": 60, "height": 40}
    data = read_dataset(coco({"category_id": "2", "id": "7"}, images=[image | {"id": "1"}]))
    assert data.records[0].id == 1 and data.records[0].labels.tolist() == [1]
    named = [{"id": "zebra", "name": "zebra"}, {"id": "ant", "name": "ant"}]
    rows = [image | {"id": "x-9"}]
    data = read_dataset(coco({"category_id": "ant", "image_id": "x-9", "id": "u"}, images=rows, categories=named))
    assert data.class_names == ("zebra", "ant") and data.records[0].labels.tolist() == [1]
    assert data.records[0].id == 1 and not data.problems


def test_a_root_category_with_the_name_of_a_class(coco: Any) -> None:
    root = {"id": 0, "name": "cat", "supercategory": "none"}
    below = [{"id": 1, "name": "cat", "supercategory": "cat"}, {"id": 2, "name": "dog", "supercategory": "cat"}]
    data = read_dataset(coco({}, {"category_id": 2}, categories=[root, *below]))
    assert data.class_names == ("cat", "dog") and data.records[0].labels.tolist() == [0, 1]
    with pytest.raises(DatasetError, match="the name 'cat' is there twice"):
        read_dataset(coco({}, {"category_id": 0}, categories=[root, *below]))


def test_the_first_missing_file_is_the_first(coco: Any) -> None:
    rows = [{"id": i, "file_name": f"{name}.png", "width": 9, "height": 9} for i, name in enumerate(("one", "two"))]
    with pytest.raises(DatasetError, match=r"the first: 'one\.png'"):
        read_dataset(coco(images=rows))


def test_folders_that_hold_a_coco_file(coco: Any, tmp_path: Path) -> None:
    content = coco({}).read_text()
    roboflow = tmp_path / "rf"
    for split in ("train", "valid"):
        text(roboflow / split / "_annotations.coco.json", content)
        picture(roboflow / split / "a.png")
    text(roboflow / "README.roboflow.txt", "leaf - v1\n")
    for source in (roboflow / "train", roboflow):
        assert tell_format(source) == "coco" and boxes(read_dataset(source, split="train")) == [[10, 10, 30, 20]]
    assert read_dataset(roboflow, split="val").annotations == roboflow / "valid" / "_annotations.coco.json"
    cvat = tmp_path / "cvat"
    text(cvat / "annotations" / "instances_default.json", content)
    picture(cvat / "images" / "a.png")
    assert read_dataset(cvat).records[0].path == cvat / "images" / "a.png"
    text(cvat / "annotations" / "instances_other.json", content)
    with pytest.raises(DatasetError, match=r"2 COCO files \(instances_default\.json, instances_other\.json\)"):
        read_dataset(cvat)
    text(cvat / "annotations" / "instances_val.json", content)
    assert read_dataset(cvat, split="val").annotations.name == "instances_val.json"


# ---------------------------------------------------------------------------------------------
# YOLO


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    """a.png with one object of class 0, and a data.yaml that names cat and dog."""
    root = tmp_path / "yolo"
    picture(root / "images" / "a.png")
    text(root / "labels" / "a.txt", "0 0.5 0.5 0.5 0.5\n")
    text(root / "data.yaml", "train: images\nval: images\nnames: [cat, dog]\n")
    return root


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


def test_a_list_of_names_with_one_twice_is_refused(yolo: Path) -> None:
    text(yolo / "labels" / "classes.txt", "cat\ndog\ncat\n")
    with pytest.raises(DatasetError, match=r"classes\.txt: the class name 'cat' is there twice"):
        read_dataset(yolo / "labels")


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
    assert len(data) == 5 and data.problems.counts == {records.LEFT_OUT: 5}


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
    assert data.problems.why().startswith(f"1 {records.NO_CLASS}, the first: ")
    assert data.problems.why().endswith("classes.txt names 1 class)") and "line 1: 2 0.5" in data.problems.why()


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


# ---------------------------------------------------------------------------------------------
# Pascal VOC


def voc_xml(name: str, *bounds: tuple[Any, ...], more: str = "", head: str = "", database: str = "Unknown") -> str:
    ends = "".join(
        f"<object><name>cat</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox>"
        f"{more}</object>"
        for a, b, c, d in bounds
    )
    return (
        f"{head}<annotation><filename>{name}</filename><source><database>{database}</database></source>"
        f"<size><width>60</width><height>40</height></size>{ends}</annotation>"
    )


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "voc"
    for name in ("a", "b"):
        picture(root / "JPEGImages" / f"{name}.png")
        text(root / "Annotations" / f"{name}.xml", voc_xml(f"{name}.png", (11, 11, 30, 20)))
        text(root / "ImageSets" / "Main" / f"{name}.txt", f"{name}\n")
    return root


@pytest.mark.parametrize("proof", [(0, 5, 9, 9), (-1, 5, 9, 9), (5.5, 5, 9, 9), (5, 5, 9.25, 9)])
def test_a_set_that_counts_from_0_is_read_so_as_a_whole(voc: Path, proof: tuple[float, ...]) -> None:
    assert boxes(read_dataset(voc)) == [[10, 10, 30, 20]] * 2 and not read_dataset(voc).problems.summary()
    text(voc / "Annotations" / "b.xml", voc_xml("b.png", (11, 11, 30, 20), proof))
    data = read_dataset(voc)
    assert boxes(data)[:2] == [[11, 11, 30, 20]] * 2 and data.voc_origin == 0
    (note,) = data.problems.notes
    assert note.startswith("coordinates count from 0") and "b.xml: object 2" in note
    lone = read_dataset(voc / "ImageSets" / "Main" / "a.txt")  # the list without the proof, of the same set
    assert boxes(lone) == [[11, 11, 30, 20]] and lone.voc_origin == 0
    told = read_dataset(voc, voc_origin=1)
    assert (
        boxes(told)[0] == [10, 10, 30, 20] and told.problems.notes == () and told.problems.counts[records.FROM_0] == 1
    )
    assert read_dataset(voc, voc_origin=0).problems.notes == ()
    assert read_split({"annotations": str(voc), "voc_origin": 1}, ["cat"], "val").voc_origin == 1


def test_what_does_not_prove_an_origin(voc: Path) -> None:
    text(
        voc / "Annotations" / "b.xml",
        voc_xml("b.png", ("5.0", "nan", 9, 9), ("x", 1, 2, 3), (0, 0, 0, 0), (1, 1, 60, 40)),
    )
    assert read_dataset(voc).voc_origin == 1
    devkit = voc_xml("b.png", (5.7, 5, 9, 9), database="The VOC2012 Database")
    text(voc / "Annotations" / "b.xml", devkit)  # VOC2012 has such ones, and counts from 1
    assert read_dataset(voc).voc_origin == 1
    assert read_dataset(voc / "ImageSets" / "Main" / "a.txt").voc_origin == 1


def test_a_turned_box_of_cvat(voc: Path) -> None:
    turned = "<attributes><attribute><name>rotation</name><value>90.0</value></attribute></attributes>"
    text(voc / "Annotations" / "a.xml", voc_xml("a.png", (20, 15, 40, 25), more=turned))
    data = read_dataset(voc)
    assert boxes(data)[0] == [25, 10, 35, 30] and data.problems.counts == {records.TURNED: 1}


def test_difficult_as_text(voc: Path) -> None:
    text(voc / "Annotations" / "a.xml", voc_xml("a.png", (11, 11, 30, 20), more="<difficult>True</difficult>"))
    text(voc / "Annotations" / "b.xml", voc_xml("b.png", (11, 11, 30, 20), more="<difficult>Unspecified</difficult>"))
    data = read_dataset(voc)
    assert [r.crowd.tolist() for r in data.records] == [[True], [False]]
    assert data.problems.counts == {records.BAD_FLAG: 1}


def test_the_picture_of_an_xml_by_its_name_whatever_its_suffix(voc: Path) -> None:
    (voc / "JPEGImages" / "a.png").rename(voc / "JPEGImages" / "a.jfif")
    (voc / "JPEGImages" / "b.png").rename(voc / "JPEGImages" / "B.PNG")
    text(voc / "Annotations" / "b.xml", voc_xml("B.PNG", (11, 11, 30, 20)))
    data = read_dataset(voc)
    assert [r.path.name for r in data.records] == ["a.jfif", "B.PNG"] and not data.problems
    (voc / "JPEGImages" / "day1").mkdir()
    (voc / "JPEGImages" / "a.jfif").rename(voc / "JPEGImages" / "day1" / "a.png")
    assert [r.path.parent.name for r in read_dataset(voc).records] == ["day1", "JPEGImages"]


def test_a_copied_xml_belongs_to_the_picture_of_its_own_name(voc: Path) -> None:
    picture(voc / "JPEGImages" / "c.png", (20, 30))
    text(voc / "Annotations" / "c.xml", voc_xml("a.png", (11, 11, 21, 20)))  # with a.png's size, too
    data = read_dataset(voc)
    assert [record.path.name for record in data.records] == ["a.png", "b.png", "c.png"]
    assert (data.records[2].height, data.records[2].width) == (20, 30)
    assert data.problems.counts == {records.BORROWED: 1}
    (voc / "JPEGImages" / "c.png").unlink()  # no picture of its own: the one that it names
    assert [record.path.name for record in read_dataset(voc).records] == ["a.png", "b.png", "a.png"]


def test_pictures_without_an_xml_are_told(voc: Path) -> None:
    picture(voc / "JPEGImages" / "c.png")
    data = read_dataset(voc)
    assert len(data) == 2 and data.problems.counts == {records.NO_ANNOTATION: 1}
    assert data.problems.items[0].detail == str(voc / "JPEGImages" / "c.png")
    assert not read_dataset(voc / "ImageSets" / "Main" / "a.txt").problems


@pytest.mark.parametrize(
    ("declared", "codec"),
    [("gb2312", "gb2312"), ("GB2312", "gbk"), ("gbk", "gbk"), ("Big5", "big5"), ("Shift_JIS", "shift_jis"),
     ("euc-kr", "euc-kr"), ("utf-16", "utf-16"), ("windows-1252", "cp1252")],
)  # fmt: skip
def test_xml_in_the_encoding_that_it_declares(voc: Path, declared: str, codec: str) -> None:
    name = {"euc-kr": "차", "cp1252": "é", "gbk": "車"}.get(codec, "人")
    content = voc_xml("a.png", (11, 11, 30, 20), head=f'<?xml version="1.0" encoding="{declared}"?>')
    text(voc / "Annotations" / "a.xml", content.replace("<name>cat", f"<name>{name}"), codec)
    data = read_dataset(voc)
    assert name in data.class_names and not data.problems


@pytest.mark.parametrize(("declared", "reason"), [("klingon", "'klingon', which is not known"), ("big5", "is not in")])
def test_xml_that_is_not_in_an_encoding_is_listed(voc: Path, declared: str, reason: str) -> None:
    head = f'<?xml version="1.0" encoding="{declared}"?>'
    (voc / "Annotations" / "a.xml").write_bytes(head.encode() + b"<annotation>\xff\xff</annotation>")
    data = read_dataset(voc)
    assert data.problems.counts == {records.BROKEN_ENTRY: 1} and reason in data.problems.items[0].detail


def test_names_with_spaces_and_a_byte_order_mark(voc: Path) -> None:
    for stem in ("Screenshot (5)", "shot 1"):
        picture(voc / "JPEGImages" / f"{stem}.png")
        text(voc / "Annotations" / f"{stem}.xml", voc_xml(f"{stem}.png", (11, 11, 30, 20)))
    names = text(voc / "ImageSets" / "Main" / "default.txt", "Screenshot (5)\r\nshot 1\r\na\r\n", "utf-8-sig")
    data = read_dataset(names)
    assert [r.path.stem for r in data.records] == ["Screenshot (5)", "shot 1", "a"] and not data.problems
    text(names, "a 1\nb -1\n")
    with pytest.raises(DatasetError, match=r"line 1: expected one name of an image, got 'a 1'"):
        read_dataset(names)


def test_a_text_beside_xml_is_no_label(tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    picture(flat / "a.png")
    text(flat / "a.xml", voc_xml("a.png", (11, 11, 30, 20)))
    texts = {"labelmap.txt": "# label:color_rgb\ncar:1,0,0::\n", "README.txt": "hello", "train.txt": "a\n"}
    for name, content in texts.items():
        text(flat / name, content)
    assert tell_format(flat) == "voc" and len(read_dataset(flat)) == 1
    assert len(read_dataset(flat / "train.txt")) == 1
    text(flat / "a.txt", "0 0.5 0.5 1 1\n")
    with pytest.raises(DatasetError, match="format: voc or format: yolo"):
        read_dataset(flat)
    assert len(read_dataset(flat, format="voc")) == 1


@pytest.mark.parametrize("folder", ["annotations/xmls", "annotations", "labels_xml"])
def test_a_list_of_names_beside_other_folders(tmp_path: Path, folder: str) -> None:
    root = tmp_path / "set"
    for name in "abc":
        picture(root / "images" / f"{name}.png")
        text(root / folder / f"{name}.xml", voc_xml(f"{name}.png", (11, 11, 30, 20)))
    place = root / "annotations" if folder.startswith("annotations") else root
    names = text(place / "trainval.txt", "a\nc\n")
    assert [r.path.name for r in read_dataset(names, root / "images").records] == ["a.png", "c.png"]
    assert [r.path.name for r in read_dataset(names).records] == ["a.png", "c.png"]
    text(names, "x\ny\n")
    with pytest.raises(DatasetError, match="lists names, not pictures .the first: 'x'"):
        read_dataset(names)


def test_links_keep_their_own_place(voc: Path, tmp_path: Path) -> None:
    """As the cache of a hub, DVC and git-annex keep data: every file is a link into a store."""
    (tmp_path / "store").mkdir()
    for i, path in enumerate(sorted(p for p in voc.rglob("*") if p.is_file())):
        path.rename(tmp_path / "store" / str(i))
        path.symlink_to(tmp_path / "store" / str(i))
    assert len(read_dataset(voc)) == 2 and len(read_dataset(voc / "ImageSets" / "Main" / "a.txt")) == 1


# ---------------------------------------------------------------------------------------------
# others


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
def test_files_of_other_tools_are_named_with_the_export_that_is_read(
    tmp_path: Path, name: str, content: Any, message: str
) -> None:
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


# ---------------------------------------------------------------------------------------------
# a share for validation


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
