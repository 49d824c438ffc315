"""Annotations of a stranger: damaged, generated or malicious. What cannot be used is told, with the file's name."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from runtime.card.card import Card, CardError
from runtime.datasets import read_dataset
from runtime.datasets.annotations import BROKEN_ENTRY, NO_FILE, NOT_FINITE, CocoDataset, DatasetError
from runtime.files.yaml import parse_yaml
from runtime.images.image import write_image
from tests.at_fault import raises

HUGE = 10**400
DEEP = "[" * 100_000 + "]" * 100_000
LONG = "x" * 300 + ".jpg"
NAMES = [LONG, "a/" * 2500 + "b.jpg", "a\0b.jpg", "\ud800.jpg"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in ("0.png", "1.png"):
        write_image(tmp_path / "images" / name, np.zeros((20, 30, 3), np.uint8))
    return tmp_path / "images"


def _coco(bbox: Any, area: Any = None, width: Any = 30, file_name: str = "0.png") -> dict[str, Any]:
    images = [
        {"id": 1, "file_name": file_name, "width": width, "height": 20},
        {"id": 2, "file_name": "1.png", "width": 30, "height": 20},
    ]
    annotations = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": bbox, **({} if area is None else {"area": area})}]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}


@pytest.fixture
def read(pictures: Path) -> Callable[[Any], CocoDataset]:
    def of(content: Any) -> CocoDataset:
        path = pictures.parent / "given.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return read_dataset(path, pictures, ["a"])

    return of


def test_json_that_is_too_deep_or_has_endless_numbers(read: Callable[[Any], CocoDataset], tmp_path: Path) -> None:
    for text in (DEEP, f'{{"images": {DEEP}}}', '{"images": ' + "1" * 5000 + "}"):
        with raises(DatasetError, path=tmp_path / "given.json"):
            read(text)
    for text in (DEEP, '{"format": ' + "1" * 5000 + "}"):
        with raises(CardError, path="here"):
            Card.from_json(text, "here")


@pytest.mark.parametrize("at", range(4))
def test_whole_numbers_without_a_float_are_infinite(read: Callable[[Any], CocoDataset], at: int) -> None:
    for huge in (HUGE, -HUGE):
        bbox: list[Any] = [1, 1, 5, 5]
        bbox[at] = huge
        found = read(_coco(bbox))
        assert found.problems.counts == {NOT_FINITE: 1} and len(found) == 2
        entry = {"filename": "0.png", "width": 30, "height": 20, "ann": {"bboxes": [bbox], "labels": [0]}}
        assert read([entry]).problems.counts == {NOT_FINITE: 1}


def test_an_area_that_float32_has_not_is_the_boxes_own(read: Callable[[Any], CocoDataset]) -> None:
    with np.errstate(all="raise"):
        for area in (HUGE, 1e39, float("inf"), float("nan"), -1):
            (record, _) = read(_coco([1, 1, 5, 5], area)).records
            assert record.area.tolist() == [25.0]
    (record, _) = read(_coco([1, 1, 5, 5], 7)).records
    assert record.area.tolist() == [7.0]


def test_sides_that_no_picture_has(read: Callable[[Any], CocoDataset]) -> None:
    with pytest.raises(DatasetError, match=r"given.json: images\[0\] .*height and width"):
        read(_coco([1, 1, 5, 5], width=HUGE))
    entries = [{"filename": f"{i}.png", "width": w, "height": 20, "ann": {}} for i, w in enumerate((HUGE, 30))]
    assert read(entries).problems.counts == {BROKEN_ENTRY: 1}


@pytest.mark.parametrize("name", NAMES)
def test_names_that_no_file_can_have_are_missing_files(
    name: str, read: Callable[[Any], CocoDataset], pictures: Path, tmp_path: Path
) -> None:
    assert read(_coco([1, 1, 5, 5], file_name=name)).problems.counts == {NO_FILE: 1}
    for sides in ({}, {"width": 30, "height": 20}):
        entries = [{"filename": n, **sides, "ann": {"bboxes": [[1, 1, 5, 5]], "labels": [0]}} for n in (name, "1.png")]
        assert read(entries).problems.counts == {NO_FILE: 1}
    if "\0" in name or "\ud800" in name:
        return  # neither XML nor a list of names holds them
    voc = tmp_path / "voc"
    voc.mkdir()
    for number, file_name in enumerate((name, "1.png")):
        (voc / f"{number}x.xml").write_text(
            f"<annotation><filename>{file_name}</filename><size><width>30</width><height>20</height></size></annotation>"
        )
    assert read_dataset(voc, pictures, ["a"]).problems.counts[NO_FILE] == 1
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "1.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    listed = tmp_path / "train.txt"
    listed.write_text(f"{name}\nimages/1.png\n")
    assert read_dataset(listed, None, ["a"], "yolo").problems.counts[NO_FILE] == 1
    for key in ("path", "val"):
        data = {"path": ".", "val": "images", "names": ["a"], key: name}
        (tmp_path / "data.yaml").write_text("".join(f"{k}: {json.dumps(value)}\n" for k, value in data.items()))
        if key == "path":  # often that of another machine
            assert len(read_dataset(tmp_path / "data.yaml", None, None)) == 2
        else:
            with raises(DatasetError, key="val", path=tmp_path / "data.yaml"):
                read_dataset(tmp_path / "data.yaml", None, None)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)
BAD_YAML = {
    "date": "x: 2001-99-99", "hex": "x: 0x_", "digits": "x: " + "1" * 5000, "int": "x: !!int foo",
    "bool": "x: !!bool foo", "time": "x: !!timestamp foo", "map": "x: !!map [1]", "keys": "? [1]\n: a\n? [1]\n: b\n",
    "character": 'x: "\\UFFFFFFFF"', "deep": "x: " + "[" * 2000 + "]" * 2000,
    "version": "%YAML 99999999999999999999.1\n---\nx",
    "bomb": BOMB, "cycle": "x: &a {b: *a}", "python": "!!python/object/apply:os.getcwd []",
}  # fmt: skip


@pytest.mark.parametrize("text", BAD_YAML.values(), ids=BAD_YAML)
def test_every_fault_of_yaml_is_an_error_of_yaml(text: str, pictures: Path) -> None:
    with pytest.raises(yaml.YAMLError):
        parse_yaml(text)
    path = pictures.parent / "data.yaml"
    path.write_text(text if text.startswith(("%", "!")) else f"train: images\nnames: [a]\n{text}\n")
    with contextlib.suppress(DatasetError):  # in a data.yaml all values are text, so that some of these are none
        read_dataset(path, None, None)


def test_aliases_of_common_size_are_read() -> None:
    assert parse_yaml("a: &a [1, 2]\nb: *a\nc: {<<: {d: 1}, e: *a}") == {
        "a": [1, 2], "b": [1, 2], "c": {"d": 1, "e": [1, 2]},
    }  # fmt: skip
    assert parse_yaml("") is None and os.sep  # an empty document
