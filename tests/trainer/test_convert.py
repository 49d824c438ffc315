"""`trainer convert`: any format to any, boxes exact to the format's precision, and what is lost is told."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import runtime.datasets
from runtime.datasets import read_dataset
from runtime.datasets.annotations import EVERY_CLASS, CocoDataset, DatasetError
from runtime.datasets.coco import read_coco
from runtime.images.image import write_image
from tests.at_fault import raises
from tests.trainer.voc_set import voc_set
from trainer.__main__ import main
from trainer.commands.data import Format
from trainer.prepare.convert import convert

FORMATS = ["coco", "voc", "yolo", "list"]
HW = (48, 64)


def source(folder: Path, boxes: list[tuple[Any, int, bool]], area: float | None = None) -> Path:
    """A COCO set of two pictures, one in a subfolder and without objects; boxes are (xyxy, category, crowd)."""
    for name in ("a.png", "sub/b.png"):
        if not (folder / "set" / name).is_file():
            write_image(folder / "set" / name, np.full((*HW, 3), 80, np.uint8))
    annotations = [
        {"id": i, "image_id": 4, "category_id": c, "iscrowd": int(crowd), "area": area,
         "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]]}
        for i, (b, c, crowd) in enumerate(boxes)
    ]  # fmt: skip
    images = [{"id": i, "file_name": n, "height": HW[0], "width": HW[1]} for i, n in ((4, "a.png"), (9, "sub/b.png"))]
    content = {"images": images, "annotations": annotations,
               "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]}  # fmt: skip
    (folder / "set.json").write_text(json.dumps(content))
    return folder / "set.json"


def target(folder: Path, to: str, name: str = "out") -> Path:
    return folder / (f"{name}.json" if to in ("coco", "list") else name)


def rows(data: CocoDataset, name: str = "a.png") -> list[Any]:
    (record,) = (r for r in data.records if r.path.name == name)
    names = [data.class_names[i] for i in record.labels]
    return sorted(zip(record.boxes_xyxy.tolist(), names, record.crowd.tolist(), strict=True))


WHOLE = [((0, 0, 64, 48), 3, False), ((5, 6, 6, 7), 7, False), ((10, 20, 30, 40), 7, True)]


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_any_to_any_keeps_whole_pixels(tmp_path, first, second):
    start = source(tmp_path, WHOLE)
    one = convert(start, first, target(tmp_path, first, "one"), pictures="link")
    two = convert(one.annotations, second, target(tmp_path, second, "two"), pictures="copy")
    again = read_dataset(two.annotations, split="train")  # with its own pictures beside it
    crowd_kept = "yolo" not in (first, second)
    expected = [row for row in rows(read_dataset(start)) if crowd_kept or not row[2]]
    assert np.allclose([r[0] for r in rows(again)], [r[0] for r in expected], atol=1e-5)
    assert [r[1:] for r in rows(again)] == [r[1:] for r in expected]
    assert rows(again, "b.png") == [] and len(again) == 2 and not again.problems
    assert any("1 ignored boxes" in note for note in (*one.notes, *two.notes)) != crowd_kept
    assert not any(record.path.is_symlink() for record in again.records)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


coordinate = st.floats(0, 1, width=32)


@settings(max_examples=10)
@example([(0.197265625, 0.0, 0.19921875, 1.0)])  # rounds away, next to the pixel that it is in
@given(st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate), min_size=1, max_size=40))
def test_boxes_are_exact_to_the_precision_of_the_format(shares):
    sides = np.array([HW[1], HW[0]] * 2, np.float32)
    boxes = [np.sort(np.float32(s).reshape(2, 2), axis=0).reshape(4) * sides for s in shares]
    with tempfile.TemporaryDirectory() as folder:
        start = source(Path(folder), [(b.astype(float).tolist(), 3, False) for b in boxes])
        before = read_dataset(start).records[0].boxes_xyxy
        if not len(before):
            return
        for to, tolerance in (("coco", 0.0), ("list", 0.0), ("yolo", 1e-5), ("voc", 1.0)):
            done = convert(start, to, target(Path(folder), to, to))
            data = read_dataset(done.annotations, done.images, ["cat"])
            after = data.records[0].boxes_xyxy
            if to == "voc":
                thick = (before[:, 2:] - before[:, :2]).min(1) > 1
                assert np.abs(after - before)[thick].max(initial=0) <= 0.5
            kept = (before[:, 2:] - before[:, :2]).min(1) > 1e-4  # thinner boxes vanish in ten digits
            if kept.all():
                assert np.abs(after - before).max() <= tolerance
            assert (after[:, 2:] > after[:, :2]).all()


def test_what_does_not_fit_is_told(tmp_path):
    start = source(tmp_path, [((1.5, 1, 9, 9), 3, False)], area=7.5)
    notes = {to: convert(start, to, target(tmp_path, to, to)).notes for to in FORMATS}
    assert notes["coco"] == () and read_coco(tmp_path / "coco.json", tmp_path / "set").records[0].area.tolist() == [7.5]
    assert "1 areas" in notes["list"][0] and "1 areas" in notes["yolo"][-1]
    assert [note[:14] for note in notes["voc"]] == ["1 boxes were r", "1 classes with", "1 areas that a"]
    ignoring = tmp_path / "ignoring.json"
    entry = {"filename": "a.png", "ann": {"bboxes": [], "labels": [], "bboxes_ignore": [[1, 2, 3, 4]]}}
    ignoring.write_text(json.dumps([entry]))
    (tmp_path / "ignoring.classes.txt").write_text("cat\ndog\n")
    data = read_dataset(ignoring, tmp_path / "set")
    assert data.records[0].labels.tolist() == [EVERY_CLASS]
    done = convert(ignoring, "coco", tmp_path / "spread.json", tmp_path / "set")
    assert done.notes == ("1 ignore regions of every class were written once for each class",)
    assert rows(read_dataset(done.annotations, done.images)) == [([1, 2, 3, 4], n, True) for n in ("cat", "dog")]
    only = convert(ignoring, "yolo", tmp_path / "only", tmp_path / "set")
    assert any("1 more pictures are in" in note for note in only.notes)


def test_nothing_is_overwritten_and_nothing_is_left_half_done(tmp_path):
    start = source(tmp_path, WHOLE)
    (tmp_path / "out").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for to, out in (("voc", "out"), ("coco", "set.json"), ("coco", "x.txt")):
        with raises(DatasetError, path=tmp_path / out):
            convert(start, to, tmp_path / out)
    (tmp_path / "new.classes.txt").write_text("precious")
    with raises(DatasetError, path=tmp_path / "new.classes.txt"):
        convert(start, "list", tmp_path / "new.json")
    start = start.rename(tmp_path / "source.json")
    before = sorted(tmp_path.rglob("*"))
    with raises(DatasetError, path=tmp_path / "set"):
        convert(start, "list", tmp_path / "set.json", tmp_path / "set", pictures="copy")
    write_image(tmp_path / "set" / "a.bmp", np.zeros((*HW, 3), np.uint8))
    content = json.loads(start.read_text())
    content["images"][1]["file_name"] = "a.bmp"
    start.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"images 4 \(.*a\.png\) and 9 \(.*a\.bmp\) would have the same name"):
        convert(start, "yolo", tmp_path / "new", tmp_path / "set")
    for to in ("coco", "list"):  # which name pictures with their suffix
        done = convert(start, to, tmp_path / f"both.{to}.json", tmp_path / "set")
        assert [r.path.name for r in read_dataset(done.annotations, done.images).records] == ["a.png", "a.bmp"]
        for path in tmp_path.glob("both.*"):
            path.unlink()
    (tmp_path / "set" / "a.bmp").unlink()
    assert sorted(tmp_path.rglob("*")) == before


def test_what_voc_coordinates_count_from(tmp_path, capsys):
    voc_set(tmp_path / "voc", {"a": (0.0, 5, 20, 10)})
    done = convert(tmp_path / "voc", "coco", tmp_path / "a.json")
    assert "coordinates count from 0" in done.notes[0] and len(done.notes) == 1
    assert read_coco(done.annotations, done.images).records[0].boxes_xyxy.tolist() == [[0, 5, 20, 10]]
    convert(tmp_path / "voc", "voc", tmp_path / "new", pictures="copy")
    assert read_dataset(tmp_path / "new").records[0].boxes_xyxy.tolist() == [[0, 5, 20, 10]]
    out = str(tmp_path / "b.json")
    assert main(["convert", str(tmp_path / "voc"), "--to", "coco", "--out", out, "--voc-origin", "1", "--quiet"]) == 0
    assert "does it count from 0 (voc_origin: 0)?" in capsys.readouterr().out
    assert read_coco(out, done.images).records[0].boxes_xyxy.tolist() == [[0, 4, 20, 10]]


def test_the_command_and_class_files(tmp_path, capsys):
    start = source(tmp_path, WHOLE)
    (tmp_path / "only.txt").write_text("dog\n")
    out = tmp_path / "yolo"
    argv = ["convert", str(start), "--to", "yolo", "--out", str(out), "--classes", str(tmp_path / "only.txt"), "--copy"]
    assert main([*argv, "--quiet"]) == 0
    told = capsys.readouterr().out
    assert "2 images, 2 boxes, 1 classes" in told and "note: 1 ignored boxes" in told
    assert f"to train on it: trainer new my.yaml --train {out} --val ...\n" in told
    assert (out / "labels" / "a.txt").read_text() == "0 0.0859375 0.1354166667 0.015625 0.02083333333\n"
    assert "train: images" in (out / "data.yaml").read_text()
    assert main([*argv, "--quiet"]) == 1 and "already exists" in capsys.readouterr().err


def test_the_commands_know_the_formats_of_the_readers():
    assert get_args(Format) == get_args(runtime.datasets.Format)
