"""Pascal VOC as tools write it: boxes and what they count from, pictures, encodings, lists and places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.datasets import annotations as records
from runtime.datasets import read_dataset, read_split, tell_format
from runtime.datasets.annotations import DatasetError
from tests.runtime.as_found import boxes, picture, text, voc_file, voc_xml


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
    odd = voc_xml("b.png", ("5.0", "nan", 9, 9), ("x", 1, 2, 3), (0, 0, 0, 0), (1, 1, 60, 40))
    text(voc / "Annotations" / "b.xml", odd)
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
    for value, counts in (("nan", {records.BAD_ROTATION: 1}), ("left", {records.BAD_ROTATION: 1}), ("", {})):
        text(voc / "Annotations" / "a.xml", voc_xml("a.png", (20, 15, 40, 25), more=turned.replace("90.0", value)))
        data = read_dataset(voc)
        assert boxes(data)[0] == [20, 15, 40, 25] and data.problems.counts == counts


def rotated_box(*numbers: Any, keys: tuple[str, ...] = ("cx", "cy", "w", "h", "angle")) -> str:
    """An object as roLabelImg writes it."""
    values = "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, numbers, strict=True))
    return f"<object><type>robndbox</type><name>cat</name><robndbox>{values}</robndbox></object>"


def test_a_rotated_box_of_rolabelimg(voc: Path) -> None:
    rotated = [
        (30, 20, 20, 10, 1.570796),  # a quarter turn
        (30, 20, 20, 10, 0.0),
        (30, 20, 20, 10, 3.141593),  # half a turn, to the places that are written
        (30.0, 20.5, 16.0, 12.0, 0.643501),  # cosine 0.8, sine 0.6
        (30.0, 20.5, 16.0, 12.0, 2.498092),  # as much the other way
    ]
    text(voc / "Annotations" / "a.xml", voc_file("a.png", *(rotated_box(*numbers) for numbers in rotated)))
    data = read_dataset(voc)
    expected = [[25, 10, 35, 30], [20, 15, 40, 25], [20, 15, 40, 25], [20, 10.9, 40, 30.1], [20, 10.9, 40, 30.1]]
    np.testing.assert_allclose(data.records[0].boxes_xyxy, expected, rtol=0, atol=1e-4)  # six places of radians
    assert data.problems.counts == {records.TURNED: 3}
    assert "a.xml: object 1 (cat): cx '30', cy '20'" in data.problems.items[0].detail
    # The tool counts from 0, so that its boxes that are not rotated do, in every list of the set.
    assert data.voc_origin == 0 and data.records[1].boxes_xyxy.tolist() == [[11, 11, 30, 20]]
    assert read_dataset(voc / "ImageSets" / "Main" / "b.txt").voc_origin == 0
    from_1 = read_dataset(voc, voc_origin=1)
    assert from_1.records[0].boxes_xyxy[1].tolist() == [20, 15, 40, 25]  # a middle and sides have no pixel more or less
    assert from_1.records[1].boxes_xyxy.tolist() == [[10, 10, 30, 20]] and records.FROM_0 in from_1.problems.counts


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [((30, 20, 20, 10, "nan"), records.NOT_FINITE), ((30, "inf", 20, 10, 1), records.NOT_FINITE),
     ((30, 20, 20, 10, "inf"), records.NOT_FINITE), ((30, 20, 20, "", 1), records.NO_BBOX),
     ((30, 20, -20, 30, 1), records.NO_AREA), ((30, 20, 20, 0, 0.7), records.NO_AREA),
     ((300, 20, 20, 10, 0.7), records.OUTSIDE), ((30, 20, 20, 10, "left"), records.NO_BBOX)],
)  # fmt: skip
def test_a_rotated_box_that_is_none_is_skipped_and_told(voc: Path, numbers: tuple[Any, ...], reason: str) -> None:
    text(voc / "Annotations" / "a.xml", voc_file("a.png", rotated_box(*numbers)))
    data = read_dataset(voc)
    assert data.records[0].boxes_xyxy.shape == (0, 4) and data.problems.counts == {reason: 1}
    missing = rotated_box(*numbers[:4], keys=("cx", "cy", "w", "h"))
    text(voc / "Annotations" / "a.xml", voc_file("a.png", missing))
    assert read_dataset(voc).problems.counts == {records.NO_BBOX: 1}


def test_difficult_as_text(voc: Path) -> None:
    text(voc / "Annotations" / "a.xml", voc_xml("a.png", (11, 11, 30, 20), more="<difficult>True</difficult>"))
    text(voc / "Annotations" / "b.xml", voc_xml("b.png", (11, 11, 30, 20), more="<difficult>Unspecified</difficult>"))
    data = read_dataset(voc)
    assert [r.crowd.tolist() for r in data.records] == [[True], [False]]
    assert data.problems.counts == {records.BAD_FLAG: 1}


# From here on: their pictures, encodings, lists and places
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


@pytest.mark.parametrize("declared", ["foo", "utf-7", "utf-32", "rot13", "idna"])
def test_xml_of_an_odd_encoding_is_read_or_is_one_broken_file(voc: Path, declared: str) -> None:
    head = f'<?xml version="1.0" encoding="{declared}"?>'
    text(voc / "Annotations" / "a.xml", voc_xml("a.png", (11, 11, 30, 20), head=head))
    data = read_dataset(voc)
    assert len(data) + data.problems.counts.get(records.BROKEN_ENTRY, 0) == 2 and len(data) >= 1


def test_names_with_spaces_and_a_byte_order_mark(voc: Path) -> None:
    for stem in ("Screenshot (5)", "shot 1"):
        picture(voc / "JPEGImages" / f"{stem}.png")
        text(voc / "Annotations" / f"{stem}.xml", voc_xml(f"{stem}.png", (11, 11, 30, 20)))
    names = text(voc / "ImageSets" / "Main" / "default.txt", "Screenshot (5)\r\nshot 1\r\na\r\n", "utf-8-sig")
    data = read_dataset(names)
    assert [r.path.stem for r in data.records] == ["Screenshot (5)", "shot 1", "a"] and not data.problems


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
