"""YOLO labels as tools write them: poses, names, label files that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.datasets import annotations as records
from runtime.datasets import read_dataset
from runtime.datasets.annotations import DatasetError
from tests.runtime.as_found import boxes, text, yolo_set


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    return yolo_set(tmp_path / "yolo")


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
