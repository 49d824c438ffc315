"""COCO files as tools write them: what they mean is read, or told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.datasets import annotations as records
from runtime.datasets import read_dataset, tell_format
from runtime.datasets.annotations import DatasetError, flag_of, rotation_of, turned_bounds
from tests.runtime.as_found import boxes, picture, text


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
