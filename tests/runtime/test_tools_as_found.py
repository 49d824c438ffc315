"""Files of tools that are not read are named with the export that is; a table of objects is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.datasets import annotations as records
from runtime.datasets import read_dataset, tell_format
from runtime.datasets.annotations import DatasetError
from tests.runtime.as_found import boxes, picture, text


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
