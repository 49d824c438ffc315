"""Boxes of Pascal VOC files as tools write them: what they count from, rotations, difficult."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.datasets import annotations as records
from runtime.datasets import read_dataset, read_split
from tests.runtime.as_found import boxes, text, voc_set, voc_xml


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return voc_set(tmp_path / "voc")


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


def rotated_box(*numbers: Any, keys: tuple[str, ...] = ("cx", "cy", "w", "h", "angle")) -> str:
    """An object as roLabelImg writes it."""
    values = "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, numbers, strict=True))
    return f"<object><type>robndbox</type><name>cat</name><robndbox>{values}</robndbox></object>"


def voc_objects(name: str, *objects: str) -> str:
    return voc_xml(name).replace("</annotation>", "".join(objects) + "</annotation>")


def test_a_rotated_box_of_rolabelimg(voc: Path) -> None:
    text(
        voc / "Annotations" / "a.xml",
        voc_objects(
            "a.png",
            rotated_box(30, 20, 20, 10, 1.570796),  # a quarter turn
            rotated_box(30, 20, 20, 10, 0.0),
            rotated_box(30, 20, 20, 10, 3.141593),  # half a turn, to the places that are written
            rotated_box(30.0, 20.5, 16.0, 12.0, 0.643501),  # cosine 0.8, sine 0.6
            rotated_box(30.0, 20.5, 16.0, 12.0, 2.498092),  # as much the other way
        ),
    )
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
    text(voc / "Annotations" / "a.xml", voc_objects("a.png", rotated_box(*numbers)))
    data = read_dataset(voc)
    assert data.records[0].boxes_xyxy.shape == (0, 4) and data.problems.counts == {reason: 1}
    missing = rotated_box(*numbers[:4], keys=("cx", "cy", "w", "h"))
    text(voc / "Annotations" / "a.xml", voc_objects("a.png", missing))
    assert read_dataset(voc).problems.counts == {records.NO_BBOX: 1}


def test_difficult_as_text(voc: Path) -> None:
    text(voc / "Annotations" / "a.xml", voc_xml("a.png", (11, 11, 30, 20), more="<difficult>True</difficult>"))
    text(voc / "Annotations" / "b.xml", voc_xml("b.png", (11, 11, 30, 20), more="<difficult>Unspecified</difficult>"))
    data = read_dataset(voc)
    assert [r.crowd.tolist() for r in data.records] == [[True], [False]]
    assert data.problems.counts == {records.BAD_FLAG: 1}
