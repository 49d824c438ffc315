from __future__ import annotations

import copy
import gc
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.datasets import annotations as records
from runtime.datasets import coco, read_dataset, tell_format
from runtime.datasets.annotations import DatasetError, Problems, flag_of, rotation_of, turned_bounds
from runtime.datasets.coco import read_coco
from tests.at_fault import raises
from tests.runtime.as_found import boxes, picture, text

Files = Callable[..., tuple[Path, Path]]


def content(*annotations: dict[str, Any]) -> dict[str, Any]:
    return {
        "images": [
            {"id": 7, "file_name": "seven.png", "height": 40, "width": 60},
            {"id": 3, "file_name": "three.png", "height": 50, "width": 50},
        ],
        "categories": [{"id": 90, "name": "cat"}, {"id": 5, "name": "bee"}, {"id": -2, "name": "ant"}],
        "annotations": [{"id": i, **a} for i, a in enumerate(annotations)],
    }


def box(*bbox: float, image_id: int = 7, category_id: int = 5, **more: Any) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "bbox": list(bbox), **more}


def test_a_good_file(coco_files: Files) -> None:
    rows = box(1, 2, 3, 4, area=5.5), box(0, 0, 60, 40, category_id=90, iscrowd=1), box(10, 10, 2, 2, category_id=-2)
    annotations, images = coco_files(content(*rows))
    data = read_coco(annotations, images)
    assert (data.class_names, data.category_ids) == (("ant", "bee", "cat"), (-2, 5, 90))  # gaps, sorted by id
    assert [r.id for r in data.records] == [7, 3] and len(data) == 2
    assert not data.problems and data.problems.summary() == ""
    seven, three = data.records
    assert seven.path == images / "seven.png" and (seven.height, seven.width) == (40, 60)
    assert seven.boxes_xyxy.tolist() == [[1, 2, 4, 6], [0, 0, 60, 40], [10, 10, 12, 12]]
    assert seven.labels.tolist() == [1, 2, 0] and seven.crowd.tolist() == [False, True, False]
    assert seven.area.tolist() == [5.5, 2400, 4]
    assert three.boxes_xyxy.shape == (0, 4)  # an image without objects stays
    for record in data.records:
        assert (record.boxes_xyxy.dtype, record.labels.dtype) == (np.float32, np.int64)
        assert (record.crowd.dtype, record.area.dtype) == (np.bool_, np.float32)


@pytest.mark.parametrize(
    ("bbox", "reason"),
    [
        ([float("nan"), 1, 2, 3], coco.NOT_FINITE), ([1, 1, float("inf"), 3], coco.NOT_FINITE),
        ([1, 1, 0, 3], coco.NO_AREA), ([1, 1, 3, -2], coco.NO_AREA), ([60, 1, 5, 5], coco.OUTSIDE),
        ([5, 5, 1e-9, 3], coco.NO_AREA),  # no area left in float32
        ([-9, -9, 9, 9], coco.OUTSIDE), ([1, 2, 3], coco.NO_BBOX), ([1, 2, 3, "4"], coco.NO_BBOX),
        ([1, 2, 3, True], coco.NO_BBOX), (None, coco.NO_BBOX), (..., coco.NO_BBOX),  # ...: no such key
    ],
)  # fmt: skip
def test_a_bad_box_is_skipped_and_listed(coco_files: Files, bbox: Any, reason: str) -> None:
    bad = {"image_id": 7, "category_id": 5} | ({} if bbox is ... else {"bbox": bbox})
    data = read_coco(*coco_files(content(box(1, 2, 3, 4), bad)))
    assert data.records[0].boxes_xyxy.tolist() == [[1, 2, 4, 6]]
    (problem,) = data.problems.items
    assert (problem.reason, problem.image_id, problem.annotation_id) == (reason, 7, 1)
    assert data.problems.summary() == records.reason_text(1, reason)


def test_annotations_need_no_id(coco_files: Files) -> None:
    without = content(box(1, 2, 3, 4), box(5, 6, 7, 8))
    for annotation in without["annotations"]:
        del annotation["id"]
    data = read_coco(*coco_files(without))
    assert data.records[0].boxes_xyxy.tolist() == [[1, 2, 4, 6], [5, 6, 12, 14]] and not data.problems


def test_boxes_partly_outside_are_clipped_and_counted(coco_files: Files) -> None:
    data = read_coco(*coco_files(content(box(-5, 30, 20, 20), box(50, 0, 10.0005, 5))))
    assert data.records[0].boxes_xyxy.tolist() == [[0, 30, 15, 40], [50, 0, 60, 5]]
    assert data.problems.counts == {coco.CLIPPED: 1}  # half a thousandth of a pixel is rounding


def test_unknown_ids_are_listed(coco_files: Files) -> None:
    data = read_coco(*coco_files(content(box(1, 1, 2, 2, image_id=99), box(1, 1, 2, 2, category_id=6))))
    assert data.problems.counts == {coco.UNKNOWN_IMAGE: 1, coco.UNKNOWN_CATEGORY: 1}
    assert sum(len(r.labels) for r in data.records) == 0


def test_the_summary_counts_the_most_frequent_first() -> None:
    problems = Problems(tuple(coco.Problem(r, 1) for r in (coco.NO_AREA, coco.CLIPPED, coco.CLIPPED)))
    assert problems.summary() == f"2 {coco.CLIPPED}, {records.reason_text(1, coco.NO_AREA)}" and len(problems) == 3


def test_classes_decide_the_labels(coco_files: Files) -> None:
    files = coco_files(content(box(1, 1, 2, 2, category_id=90), box(1, 1, 2, 2, category_id=-2)))
    data = read_coco(*files, classes=["cat", "bee"])
    assert (data.class_names, data.category_ids) == (("cat", "bee"), (90, 5))
    assert data.records[0].labels.tolist() == [0]
    assert data.problems.counts == {coco.OTHER_CLASS: 1}
    with pytest.raises(DatasetError, match="there is no class 'bea'; did you mean 'bee'?"):
        read_coco(*files, classes=["bea"])
    with pytest.raises(DatasetError, match="'bee' was asked for twice"):
        read_coco(*files, classes=["bee", "bee"])
    with pytest.raises(DatasetError, match="expected a list of at least one class name"):
        read_coco(*files, classes="bee")


def test_missing_image_files(coco_files: Files) -> None:
    annotations, images = coco_files(content(box(1, 1, 2, 2)))
    (images / "seven.png").unlink()
    data = read_coco(annotations, images)
    assert [r.id for r in data.records] == [3] and data.problems.counts == {coco.NO_FILE: 1}
    assert [r.id for r in read_coco(annotations, images, check_files=False).records] == [7, 3]
    (images / "three.png").unlink()
    with pytest.raises(DatasetError, match=r"none of its 2 image files is in .*the first: 'seven\.png'"):
        read_coco(annotations, images)


def changed(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(whole: dict[str, Any]) -> None:
        *keys, last = path.split(".")
        holder: Any = whole
        for key in keys:
            holder = holder[int(key)] if key.isdecimal() else holder[key]
        if value is ...:
            del holder[last]
        else:
            holder[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("images", ...), "missing key 'images'"),
        (changed("annotations", ...), "missing key 'annotations'"),
        (changed("categories", ...), "missing key 'categories'"),
        (changed("images", []), "images: empty dataset"),
        (changed("categories", []), "categories: expected at least one"),
        (changed("images", {}), "images: expected a list of objects"),
        (changed("annotations", [3]), "annotations: expected a list of objects"),
        (changed("images.1.id", 7), r"images\[1\] \(id 7\): this image id is there twice"),
        (changed("images.1.id", "7"), r"images\[1\] \(id 7\): this image id is there twice"),
        (changed("images.1.id", [7]), r"images\[1\]: id: expected a whole number or text, got \[7\]"),
        (changed("images.0.file_name", ...), r"images\[0\] \(id 7\): file_name: expected text, got None"),
        (changed("images.0.width", "60"), r"images\[0\] \(id 7\): width: expected a whole number, got '60'"),
        (changed("images.0.height", -1), r"images\[0\] \(id 7\): expected height and width of at least 1"),
        (changed("categories.1.id", 90), "categories: id 90 is there twice"),
        (changed("categories.1.name", "cat"), "categories: the name 'cat' is there twice"),
        (changed("categories.1.name", 4), r"categories\[1\].name: expected text, got 4"),
        (changed("annotations.1.id", 0), r"annotations\[1\].id: the annotation id 0 is there twice"),
        (changed("annotations.1.id", [0]), r"annotations\[1\].id: expected a whole number"),
    ],
)
def test_what_is_not_coco_is_refused(coco_files: Files, change: Callable[[dict[str, Any]], None], message: str) -> None:
    good = content(box(1, 1, 2, 2), box(3, 3, 2, 2))
    annotations, images = coco_files(good)
    assert len(read_coco(annotations, images)) == 2
    bad = copy.deepcopy(good)
    change(bad)
    annotations.write_text(json.dumps(bad))
    with pytest.raises(DatasetError, match=message) as error:
        read_coco(annotations, images)
    assert str(annotations) in str(error.value)


def test_what_is_not_json_is_refused(coco_files: Files, tmp_path: Path) -> None:
    annotations, images = coco_files(content(box(1, 1, 2, 2)))
    whole = annotations.read_bytes()
    for data, message in (
        (whole[: len(whole) // 2], "not valid JSON"), (b"", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"), (b"[]", "expected a JSON object"),
    ):  # fmt: skip
        annotations.write_bytes(data)
        with pytest.raises(DatasetError, match=message):
            read_coco(annotations, images)
    with raises(DatasetError, path=tmp_path / "gone.json"):
        read_coco(tmp_path / "gone.json", images)
    with raises(DatasetError, path=images):
        read_coco(images, images)
    annotations.write_bytes(whole)
    with raises(DatasetError, path=tmp_path / "gone"):
        read_coco(annotations, tmp_path / "gone")


numbers = st.one_of(st.floats(-200, 200), st.sampled_from([0.0, float("nan"), float("inf"), 60.0, 1e-12, 1e30, -1e30]))


@settings(max_examples=300, deadline=None)
@given(st.tuples(numbers, numbers, numbers, numbers))
def test_a_kept_box_is_inside_and_has_area(bbox: tuple[float, float, float, float]) -> None:
    kept, reason = coco._box(list(bbox), height=40, width=60)
    if kept is None:
        assert reason
        return
    x1, y1, x2, y2 = np.array(kept, np.float32)
    assert 0 <= x1 < x2 <= 60 and 0 <= y1 < y2 <= 40


def test_outlines_are_not_kept_in_memory_and_the_search_for_cycles_goes_on(coco_files: Files) -> None:
    outline = [i % 10 + 0.5 for i in range(1000)]
    rows = [box(i % 30, 2, 3, 4, segmentation=[outline]) for i in range(300)]
    crowd = box(0, 0, 9, 9, iscrowd=1, segmentation={"counts": [3, 4], "size": [40, 60]})
    annotations, images = coco_files(content(*rows, crowd))

    def peak(work: Callable[[], Any]) -> int:
        tracemalloc.start()
        kept = work()
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        del kept
        return size

    data = read_coco(annotations, images)
    assert len(data.records[0].labels) == 301 and data.records[0].crowd.sum() == 1
    with_outlines = peak(lambda: json.loads(annotations.read_bytes()))
    assert 2 * peak(lambda: read_coco(annotations, images)) < with_outlines
    assert gc.isenabled()
    with pytest.raises(DatasetError):
        read_coco(annotations, images, classes=["no such class"])
    assert gc.isenabled()


# From here on: COCO files as tools write them
@pytest.fixture
def write_coco(tmp_path: Path) -> Any:
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
def test_iscrowd_as_tools_write_it(write_coco: Any, value: Any, crowd: bool) -> None:
    data = read_dataset(write_coco({"iscrowd": value}))
    assert data.records[0].crowd.tolist() == [crowd] and not data.problems


@pytest.mark.parametrize("value", ["maybe", 2, -1, [1], {}])
def test_an_iscrowd_that_says_neither_is_told(write_coco: Any, value: Any) -> None:
    data = read_dataset(write_coco({"iscrowd": value}, {}))
    assert data.records[0].crowd.tolist() == [False, False] and data.problems.counts == {records.BAD_FLAG: 1}
    assert "iscrowd" in data.problems.items[0].detail
    assert flag_of(value) is None


def test_a_turned_box_becomes_its_upright_bounds(write_coco: Any) -> None:
    turned = {"bbox": [20, 15, 20, 10], "area": 200.0, "attributes": {"occluded": False, "rotation": 90.0}}
    data = read_dataset(write_coco(turned, turned | {"attributes": {"rotation": 180}}, turned | {"attributes": {}}))
    assert boxes(data) == [[25, 10, 35, 30], [20, 15, 40, 25], [20, 15, 40, 25]]
    assert data.problems.counts == {records.TURNED: 1} and data.records[0].area.tolist() == [200, 200, 200]


def test_turned_bounds_hold_the_turned_corners() -> None:
    box, degrees = (10.0, 20.0, 50.0, 30.0), 333.0
    angle = np.deg2rad(degrees)
    corners = np.array([(x, y) for x in (10, 50) for y in (20, 30)]) - (30, 25)
    around = corners @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) + (30, 25)
    assert turned_bounds(box, degrees) == pytest.approx((*around.min(0), *around.max(0)))
    assert [rotation_of(value) for value in ("90.0", 0, 360, None, "", " ", -90)] == [90, 0, 0, 0, 0, 0, -90]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "nan", "left", [3], {}, True, 10**400])
def test_a_rotation_that_is_no_number_is_told(write_coco: Any, value: Any) -> None:
    assert rotation_of(value) is None
    data = read_dataset(write_coco({"attributes": {"rotation": value}}, {"attributes": {"rotation": None}}, {}))
    assert boxes(data) == [[10, 10, 30, 20]] * 3 and data.problems.counts == {records.BAD_ROTATION: 1}
    assert data.problems.items[0].detail.startswith("rotation ")
    assert data.problems.summary().startswith("1 box whose rotation is no finite number")


def test_sizes_that_the_file_does_not_say_are_the_pictures_own(write_coco: Any, tmp_path: Path) -> None:
    for image in ({"width": 0, "height": 0}, {}, {"width": None, "height": 40}):
        data = read_dataset(write_coco({}, images=[{"id": 1, "file_name": "a.png"} | image]))
        assert (data.records[0].height, data.records[0].width) == (40, 60) and boxes(data) == [[10, 10, 30, 20]]
    (tmp_path / "images" / "b.png").write_bytes(b"no picture")
    rows = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}, {"id": 3, "file_name": "c.png"}]
    data = read_dataset(write_coco({}, {"image_id": 2}, images=rows))
    assert data.problems.counts == {records.NO_SIZE: 1, records.NO_FILE: 1} and len(data) == 1


def test_ids_that_are_text(write_coco: Any) -> None:
    image = {"file_name": "a.png", "width": 60, "height": 40}
    data = read_dataset(write_coco({"category_id": "2", "id": "7"}, images=[image | {"id": "1"}]))
    assert data.records[0].id == 1 and data.records[0].labels.tolist() == [1]
    named = [{"id": "zebra", "name": "zebra"}, {"id": "ant", "name": "ant"}]
    rows = [image | {"id": "x-9"}]
    data = read_dataset(write_coco({"category_id": "ant", "image_id": "x-9", "id": "u"}, images=rows, categories=named))
    assert data.class_names == ("zebra", "ant") and data.records[0].labels.tolist() == [1]
    assert data.records[0].id == 1 and not data.problems


def test_a_root_category_with_the_name_of_a_class(write_coco: Any) -> None:
    root = {"id": 0, "name": "cat", "supercategory": "none"}
    below = [{"id": 1, "name": "cat", "supercategory": "cat"}, {"id": 2, "name": "dog", "supercategory": "cat"}]
    data = read_dataset(write_coco({}, {"category_id": 2}, categories=[root, *below]))
    assert data.class_names == ("cat", "dog") and data.records[0].labels.tolist() == [0, 1]
    with pytest.raises(DatasetError, match="the name 'cat' is there twice"):
        read_dataset(write_coco({}, {"category_id": 0}, categories=[root, *below]))


def test_folders_that_hold_a_coco_file(write_coco: Any, tmp_path: Path) -> None:
    content = write_coco({}).read_text()
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
