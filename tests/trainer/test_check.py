"""check-data finds the faults that were put in, and says nothing about a data set without any."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runtime.datasets.annotations import ABSENT_CLASS, reason_text
from runtime.images.image import write_image
from tests.processes import ROOT
from tests.trainer.scenes import copies, scene
from trainer.__main__ import main
from trainer.check.boxes import _KINDS as KIND_OF_REASON
from trainer.check.data import check_data
from trainer.check.findings import KINDS, counted
from trainer.config.train import TrainConfig
from trainer.config_reader import read_config
from trainer.recipes import make_shapes

ONE_OF_MANY = re.compile(r"\b1 (?:\w+ )?(?:pictures|images|objects|boxes|files|groups|classes|annotations|polygons)\b")
"""One of something, in the plural."""


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    make_shapes(tmp_path / "set", 10, 4, seed=3)
    return tmp_path / "set"


def _config(folder: Path) -> TrainConfig:
    return read_config(folder / "shapes.yaml")


def _edit(path: Path) -> tuple[dict[str, Any], Any]:
    coco = json.loads(path.read_text())
    return coco, lambda: path.write_text(json.dumps(coco))


def _counts(path: Path) -> dict[str, int]:
    coco = json.loads(path.read_text())
    names = {c["id"]: c["name"] for c in coco["categories"]}
    counts = dict.fromkeys(names.values(), 0)
    for annotation in coco["annotations"]:
        counts[names[annotation["category_id"]]] += 1
    return counts


def test_a_sound_data_set(folder, tmp_path):
    coco, save = _edit(folder / "train.json")
    calls: list[tuple[int, int]] = []
    report = check_data(_config(folder), tmp_path / "out", progress=lambda done, total: calls.append((done, total)))
    assert report.train.objects == _counts(folder / "train.json")
    assert report.val.objects == _counts(folder / "val.json")
    empty = {i["id"] for i in coco["images"]} - {a["image_id"] for a in coco["annotations"]}
    assert report.train.empty_images == len(empty)
    assert sorted(report.train.source_areas) == sorted(a["area"] for a in coco["annotations"])
    assert report.warnings() == [w for w in report.warnings() if "no object of" in w]  # a small set may lack a class
    assert calls[-1] == (14, 14) and [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert [path.name for path in report.written] == ["classes.png", "box_sizes.png", "samples.jpg"]
    assert all(cv2.imread(str(path)) is not None for path in report.written)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["box_sizes.png", "classes.png", "samples.jpg"]
    text = report.text()
    assert "train: 10 images" in text and "val: 4 images" in text and str(tmp_path / "out" / "samples.jpg") in text


def test_every_fault_is_found(folder, tmp_path):
    train = sorted((folder / "train").iterdir())
    train[1].write_bytes(train[1].read_bytes()[:-300])
    train[2].write_text("not a picture")
    cv2.imwrite(str(train[3]), np.zeros((64, 128, 3), np.uint8))
    shutil.copy(train[5], train[4])
    shutil.copy(train[6], folder / "val" / "000002.jpg")
    train[7].unlink()
    coco, save = _edit(folder / "train.json")
    coco["images"].append(dict(coco["images"][8], id=99))
    first = coco["annotations"][0]["image_id"]
    coco["annotations"] += [
        {"id": 900, "image_id": first, "category_id": 1, "bbox": [5, 5, 0, 9], "area": 0, "iscrowd": 0},
        {"id": 901, "image_id": first, "category_id": 1, "bbox": [500, 5, 9, 9], "area": 81, "iscrowd": 0},
        {"id": 902, "image_id": first, "category_id": 1, "bbox": [5, 5, 9, 9], "area": 81, "iscrowd": 1},
    ]
    coco["categories"].append({"id": 7, "name": "hexagon"})
    save()
    coco, save = _edit(folder / "val.json")
    coco["categories"].append({"id": 7, "name": "hexagon"})
    save()
    config = folder / "shapes.yaml"
    config.write_text(config.read_text().replace("triangle]", "triangle, hexagon]"))

    report = check_data(_config(folder), tmp_path / "out")
    assert {path.name for path, _ in report.train.broken} == {train[1].name, train[2].name}
    assert report.train.wrong_size == ((train[3], (128, 128), (64, 128)),)
    assert report.train.repeated_files == (train[8],)
    assert report.train.copies == ((train[4], train[5]),)
    assert [(a.name, b.name) for a, b in report.shared] == [(train[6].name, "000002.jpg")]
    assert report.train.crowds == 1 and report.train.objects["hexagon"] == 0
    text = "\n".join(report.warnings())
    for words in (
        "1 picture is in train and val", "2 broken pictures", "truncated", "is 128x64, annotated 128x128",
        "named by several images", "identical pictures", "no object of 1 class: hexagon", "annotation 900",
        "annotation 901", "1 image whose file is missing", "val: no object of",
    ):  # fmt: skip
        assert words in text, words
    assert text.splitlines()[0].startswith("1 picture is in train and val")  # the worst first
    assert not ONE_OF_MANY.search(report.text()), report.text()


def test_small_objects_and_no_objects_at_all(folder, tmp_path):
    coco, save = _edit(folder / "train.json")
    for annotation in coco["annotations"]:
        annotation["bbox"][2:] = [3, 20]
    save()
    report = check_data(_config(folder), tmp_path / "small")
    assert any("100% of the objects have a side below 8 px" in warning for warning in report.warnings())
    coco["annotations"] = []
    save()
    report = check_data(_config(folder), tmp_path / "none")
    assert sum(report.train.objects.values()) == 0 and report.train.empty_images == 10
    assert any("no object of 3 classes: circle; square; triangle" in warning for warning in report.warnings())
    assert "train: 10 images, 10 of them without objects; 0 objects" in report.text()


def test_no_readable_picture_leaves_out_the_sheet(folder, tmp_path):
    for path in (folder / "train").iterdir():
        path.write_bytes(b"")
    report = check_data(_config(folder), tmp_path / "out")
    assert len(report.train.broken) == 10
    assert [path.name for path in report.written] == ["classes.png", "box_sizes.png"]


def test_sizes_are_those_of_the_input(folder, tmp_path):
    text = (folder / "shapes.yaml").read_text().replace("input_size_hw: [128, 128]", "input_size_hw: [64, 256]")
    (folder / "half.yaml").write_text(text)
    full = check_data(_config(folder), tmp_path / "a").train
    half = check_data(read_config(folder / "half.yaml"), tmp_path / "b").train
    np.testing.assert_allclose(half.input_wh, full.input_wh / 2, atol=1e-3)
    np.testing.assert_array_equal(half.source_areas, full.source_areas)


def test_what_is_seldom_meant_is_told(folder, tmp_path):
    coco, save = _edit(folder / "train.json")
    coco["images"].pop()
    image = coco["images"][0]["id"]
    kept = [a for a in coco["annotations"] if a["image_id"] in {i["id"] for i in coco["images"]}]
    pixel = {"id": 9001, "image_id": image, "category_id": 1, "bbox": [5, 5, 1, 1], "area": 1}
    coco["annotations"] = [*kept, kept[0] | {"id": 9002}, kept[0] | {"id": 9003}, pixel]
    save()
    found = "\n".join(check_data(_config(folder), tmp_path / "out").warnings())
    assert f"1 picture in {folder / 'train'} is neither in train nor in val: " in found
    assert f"train: 1 box of one pixel (trained on; a slip of the mouse?): {coco['images'][0]['file_name']}" in found
    assert "train: 2 boxes are there twice, with the same class (trained on twice): " in found


# From here on: the findings, for scripts
KEYS = ["id", "severity", "split", "count", "text", "examples", "advice"]


def _findings(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[tuple[str, str], dict[str, Any]], str]:
    """The exit status of `check-data --json`, its findings by id and split, and what it wrote to stderr."""
    capsys.readouterr()
    status = main(["check-data", *argv, "--json", "--quiet"])
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert all(list(row) == KEYS and len(row["examples"]) <= 5 and row["advice"] for row in rows)
    by_key = {(row["id"], row["split"]): row for row in rows}
    assert len(by_key) == len(rows) and {row["id"] for row in rows} <= set(KINDS)
    return status, by_key, err


def _scenes(folder: Path) -> Path:
    """A data set of 8 + 4 different pictures of one kind of scene, each with one object; returns its config."""
    make_shapes(folder, 8, 4, seed=3)
    for seed, path in enumerate(sorted(folder.glob("*/*.jpg")) + sorted(folder.glob("*/*.png"))):
        write_image(path, scene(seed, (128, 128)))
    for split in ("train", "val"):
        coco, save = _edit(folder / f"{split}.json")
        coco["annotations"] = [
            {"id": image["id"], "image_id": image["id"], "category_id": 1 + place % 3, "bbox": [20, 20, 60, 60],
             "area": 3600, "iscrowd": 0} for place, image in enumerate(coco["images"])
        ]  # fmt: skip
        save()
    return folder / "shapes.yaml"


def test_exit_status_and_summary(tmp_path, capsys):
    config = _scenes(tmp_path / "set")
    out = ("--out", str(tmp_path / "out"))
    assert _findings(capsys, str(config), *out, "--strict") == (0, {}, "0 errors, 0 warnings, 0 notes\n")
    coco, save = _edit(config.parent / "train.json")
    coco["annotations"].append(coco["annotations"][0] | {"id": 900})
    save()
    status, found, err = _findings(capsys, str(config), *out)
    assert status == 0 and list(found) == [("boxes-twice", "train")] and err == "0 errors, 1 warning, 0 notes\n"
    assert found["boxes-twice", "train"]["examples"] == [str(sorted((config.parent / "train").iterdir())[0])]
    assert _findings(capsys, str(config), *out, "--strict")[0] == 1
    sorted((config.parent / "val").iterdir())[0].write_bytes(b"")
    status, found, err = _findings(capsys, str(config), *out)
    assert status == 1 and next(iter(found)) == ("broken-pictures", "val") and err.startswith("1 error, 1 warning")
    assert main(["check-data", str(config), *out, "--quiet"]) == 1
    text = capsys.readouterr().out
    assert "  - error: val: 1 broken picture: " in text and "    boxes-twice: " in text
    assert "1 error, 1 warning, 0 notes" in text


def test_near_duplicates_within_and_across_splits(tmp_path, capsys):
    config = _scenes(tmp_path / "set")
    train, val = (sorted((config.parent / split).iterdir()) for split in ("train", "val"))
    alike = copies(scene(0, (128, 128)))
    write_image(train[1], alike["brighter"])
    write_image(val[2], cv2.resize(alike["encoded"], (128, 128)))
    status, found, _ = _findings(capsys, str(config), "--out", str(tmp_path / "out"), "--strict")
    assert status == 1 and list(found) == [
        ("near-duplicates-across-splits", "both"), ("near-duplicates-within-split", "train"),
    ]  # fmt: skip
    across = found["near-duplicates-across-splits", "both"]
    assert (across["count"], across["severity"]) == (1, "warning") and across["examples"][1] == str(val[2])
    assert found["near-duplicates-within-split", "train"]["examples"] == [str(train[0]), str(train[1])]
    shutil.copy(train[0], val[2])
    _, found, _ = _findings(capsys, str(config), "--out", str(tmp_path / "out"))
    assert list(found)[0] == ("same-pictures-across-splits", "both")  # and not among the near ones too
    assert ("near-duplicates-across-splits", "both") not in found


def test_classes_sizes_and_pictures_without_annotation(tmp_path, capsys):
    config = _scenes(tmp_path / "set")
    coco, save = _edit(config.parent / "train.json")
    first = coco["images"][0]["id"]
    coco["annotations"] += [
        {"id": 1000 + i, "image_id": first, "category_id": 1, "bbox": [i % 100, i // 100, 9 + i % 7, 9], "area": 81}
        for i in range(300)
    ]
    coco["annotations"].append({"id": 2000, "image_id": first, "category_id": 1, "bbox": [5, 5, 4, 9], "area": 36})
    coco["images"].append({"id": 77, "file_name": "gone.jpg", "width": 9, "height": 9})
    save()
    coco, save = _edit(config.parent / "val.json")
    dropped = coco["images"].pop()
    coco["annotations"] = [a | {"category_id": 1} for a in coco["annotations"] if a["image_id"] != dropped["id"]][:-1]
    save()
    status, found, _ = _findings(capsys, str(config), "--out", str(tmp_path / "out"))
    counts = {key: (row["severity"], row["count"]) for key, row in found.items()}
    assert status == 1 and counts == {
        ("annotations-without-picture", "train"): ("error", 1),
        ("pictures-without-annotation", "both"): ("warning", 1),
        ("class-missing-in-val", "val"): ("warning", 2),
        ("label-skew", "train"): ("warning", 2),
        ("small-objects", "train"): ("note", 1),
        ("pictures-without-objects", "val"): ("note", 1),
    }
    assert found["annotations-without-picture", "train"]["examples"] == [str(config.parent / "train" / "gone.jpg")]


def test_one_is_not_many():
    for reason in (*KIND_OF_REASON, ABSENT_CLASS):
        assert ONE_OF_MANY.match(f"1 {reason}")
        assert not ONE_OF_MANY.match(reason_text(1, reason)) and reason_text(1, reason)[2:] != reason
        assert [reason_text(count, reason) for count in (0, 2)] == [f"0 {reason}", f"2 {reason}"]
    assert [counted(count, "is", "are") for count in (0, 1, 2)] == ["0 are", "1 is", "2 are"]


def test_a_data_set_with_one_of_everything_says_so(folder, tmp_path):
    coco, save = _edit(folder / "train.json")
    keep = coco["images"][0]["id"]
    box = {"image_id": keep, "category_id": 1, "iscrowd": 0}
    coco["images"] = coco["images"][:1]
    coco["annotations"] = [
        box | {"id": 1, "bbox": [5, 5, 4, 9], "attributes": {"rotation": "left"}},
        box | {"id": 2, "bbox": [50, 50, 4, 9], "iscrowd": 1},
    ]
    save()
    report = check_data(_config(folder), tmp_path / "out")
    text = report.text()
    assert not ONE_OF_MANY.search(text), text
    assert "train: 1 image, 0 of them without objects; 1 object, and 1 ignored box (crowds" in text
    assert "doubtful-rotations: " in text and "train: 1 box whose rotation is no finite number" in text


def test_the_docs_list_every_finding():
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    for id, kind in KINDS.items():
        assert f"| `{id}` | {kind.severity}" in page, id
