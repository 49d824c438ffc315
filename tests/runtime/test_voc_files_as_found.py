"""Pascal VOC files as tools leave them: their pictures, encodings, lists and places."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.datasets import annotations as records
from runtime.datasets import read_dataset, tell_format
from runtime.datasets.annotations import DatasetError
from tests.runtime.as_found import picture, text, voc_set, voc_xml


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return voc_set(tmp_path / "voc")


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
