"""ultralytics in the benchmarks: it gets isodet's pictures and boxes, and its boxes are judged in picture pixels."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.real_sets import DataSet, write_config
from benchmarks.real_vs_peers import YOLO, YOLO_COCO, Job, coco_weights, config_of, trained, why_not
from benchmarks.ultralytics_peer import judge, yolo_set
from runtime.datasets import read_dataset
from tests.processes import ROOT
from trainer.config.train import TrainConfig
from trainer.data.datasets import train_data, val_data
from trainer.recipes.shapes import make_shapes

SIZE = 64
needs_ultralytics = pytest.mark.skipif(find_spec("ultralytics") is None, reason="ultralytics is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shapes with a crowd, with a picture that is stored turned, one of another suffix, and odd names of classes."""
    root = tmp_path_factory.mktemp("sets") / "one"
    make_shapes(root, train_images=12, val_images=6, size_hw=(64, 96))
    for split in ("train", "val"):
        coco = json.loads((root / f"{split}.json").read_text())
        for category, name in zip(coco["categories"], ("it's: a", '"b" #', "é"), strict=True):
            category["name"] = name
        coco["annotations"].append(
            {"id": 999, "image_id": coco["images"][0]["id"], "category_id": 1, "bbox": [1, 2, 30, 30], "area": 900,
             "iscrowd": 1}
        )  # fmt: skip
        filled = {annotation["image_id"] for annotation in coco["annotations"] if not annotation["iscrowd"]}
        turned = next(image for image in coco["images"] if image["id"] in filled)
        path = root / split / turned["file_name"]
        picture = Image.open(path).convert("RGB").rotate(90, expand=True)
        exif = Image.Exif()
        exif[0x0112] = 6  # shown a quarter turn clockwise, as it was
        picture.save(path, exif=exif, quality=95)
        last = coco["images"][-1]
        (root / split / last["file_name"]).rename(root / split / "LAST.JPG")
        last["file_name"] = "LAST.JPG"
        (root / f"{split}.json").write_text(json.dumps(coco))
    (root.parent / "sets.yaml").write_text(
        "one: {train: one/train.json, train_images: one/train, val: one/val.json, val_images: one/val}"
    )
    return root


@pytest.fixture
def from_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are neither here nor asked for."""
    from models.backbones.weights import Published

    monkeypatch.setattr(Published, "here", property(lambda self: False))
    monkeypatch.setattr(Published, "reachable", lambda self, timeout=3.0: False)


@pytest.fixture
def config(folder: Path, tmp_path: Path, from_scratch: None) -> TrainConfig:
    write_config("one", data_set(folder), tmp_path, SIZE)
    return config_of(Job("ultralytics-yolo11n", "one", 0, 12, SIZE), tmp_path)[0]


def data_set(folder: Path) -> DataSet:
    return DataSet(*(str(folder / name) for name in ("train.json", "val.json", "train", "val")))


def truth(config: TrainConfig) -> dict[str, list[tuple[Any, Any]]]:
    """Boxes [G, 4] and labels [G] of each picture by split, without ignored ones."""
    splits = {"train": train_data(config), "val": val_data(config)}
    return {
        name: [(record.boxes_xyxy[~record.crowd], record.labels[~record.crowd]) for record in dataset.records]
        for name, dataset in splits.items()
    }


def test_yolo_reads_the_same_pictures_and_boxes(config: TrainConfig, tmp_path: Path) -> None:
    path = yolo_set(config, tmp_path / "yolo")
    records = {"train": train_data(config).records, "val": val_data(config).records}
    for split, expected in truth(config).items():
        read = read_dataset(path, split=split)
        assert read.class_names == config.model.classes and len(read) == len(expected) and not read.problems
        for record, ours, (boxes, labels) in zip(read.records, records[split], expected, strict=True):
            assert (record.height, record.width) == (64, 96) == (ours.height, ours.width)
            np.testing.assert_allclose(record.boxes_xyxy, boxes, atol=1e-3)
            assert record.labels.tolist() == labels.tolist()
            assert record.path.read_bytes() == ours.path.read_bytes()
    assert sum(len(labels) for boxes in truth(config).values() for _, labels in boxes) > 10


def test_a_set_that_was_cut_short_is_written_anew_and_a_whole_one_kept(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "yolo" / "train" / "images").mkdir(parents=True)
    path = yolo_set(config, tmp_path / "yolo")
    before = path.stat().st_mtime_ns
    assert yolo_set(config, tmp_path / "yolo") == path and path.stat().st_mtime_ns == before


class Knowing:
    """Answers as a YOLO does, with the objects of the validation pictures, and notes how it was asked."""

    def __init__(self, config: TrainConfig, shift: float = 0.0) -> None:
        self.answers, self.shift, self.asked = iter(truth(config)["val"]), shift, []

    def predict(self, image: np.ndarray, **options: Any) -> list[Any]:
        self.asked.append((image.shape, options))
        boxes, labels = next(self.answers)
        scores = np.linspace(0.2, 0.9, len(labels))  # rising: YOLO's order is no promise
        rows = np.concatenate([boxes + self.shift, scores[:, None], labels[:, None]], axis=1).reshape(-1, 6)
        return [SimpleNamespace(boxes=SimpleNamespace(data=torch.from_numpy(rows)))]


def test_the_judge_compares_in_pixels_of_the_pictures(config: TrainConfig) -> None:
    knowing = Knowing(config)
    assert judge(knowing, config).map == pytest.approx(100)
    assert judge(Knowing(config, shift=40.0), config).map < 10
    assert len(knowing.asked) == len(val_data(config))
    for shape, options in knowing.asked:
        assert shape == (64, 96, 3)  # upright, and of its own size
        assert options == {"imgsz": 64, "conf": 0.001, "max_det": 100, "device": "cpu", "verbose": False}


def test_rows_from_coco_want_a_file_of_the_networks_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = [tmp_path / "yolo26n.pt"]
    assert {row: coco_weights(row, files) for row in (*YOLO, *YOLO_COCO)} == {
        "ultralytics-yolo11n": None, "ultralytics-yolo26n": None, "ultralytics-yolo11n-coco": None,
        "ultralytics-yolo26n-coco": files[0],
    }  # fmt: skip
    (tmp_path / "ultralytics" / "cfg" / "models" / "11").mkdir(parents=True)
    (tmp_path / "ultralytics" / "cfg" / "models" / "11" / "yolo11.yaml").touch()
    package = SimpleNamespace(origin=str(tmp_path / "ultralytics" / "__init__.py"))
    monkeypatch.setattr("benchmarks.real_vs_peers.find_spec", lambda name: package)
    assert why_not("ultralytics-yolo11n", files, "") == ""
    assert why_not("ultralytics-yolo11n-coco", files, "") == "no --yolo-weights yolo11n.pt"
    assert why_not("ultralytics-yolo26n-coco", files, "") == "the installed ultralytics has no yolo26n"
    monkeypatch.setattr("benchmarks.real_vs_peers.find_spec", lambda name: None)
    assert why_not("ultralytics-yolo11n", files, "") == "ultralytics is not installed"


READ = """
import json, sys
from pathlib import Path
from benchmarks.ultralytics_peer import offline
offline(Path(sys.argv[2]))
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset
data = check_det_dataset(sys.argv[1])
found = {}
for split in ("train", "val"):
    of_split = YOLODataset(img_path=data[split], data=data, task="detect", imgsz=64, augment=False)
    found[split] = [
        {"file": one["im_file"], "hw": one["shape"], "xywh": one["bboxes"].tolist(), "cls": one["cls"].tolist(),
         "seen": of_split.load_image(i)[0].shape}
        for i, one in enumerate(of_split.labels)
    ]
print("found " + json.dumps({"names": data["names"], **found}))
"""


@needs_ultralytics
def test_ultralytics_itself_reads_the_same_boxes(config: TrainConfig, tmp_path: Path) -> None:
    command = [sys.executable, "-c", READ, str(yolo_set(config, tmp_path / "yolo")), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("found "))[6:])
    assert list(found["names"].values()) == list(config.model.classes)
    for split, expected in truth(config).items():
        assert [Path(one["file"]).stem for one in found[split]] == [f"{i:06}" for i in range(len(expected))]
        for one, (boxes, labels) in zip(found[split], expected, strict=True):
            assert one["hw"] == [64, 96] and one["seen"] == [43, 64, 3]  # upright
            centers = np.array(one["xywh"]).reshape(-1, 4) * [96, 64, 96, 64]
            corners = np.concatenate([centers[:, :2] - centers[:, 2:] / 2, centers[:, :2] + centers[:, 2:] / 2], axis=1)
            np.testing.assert_allclose(corners, boxes, atol=1e-3)
            assert [int(c) for (c,) in one["cls"]] == labels.tolist()


@needs_ultralytics
@pytest.mark.parametrize("row", YOLO)
def test_it_trains_and_is_judged(folder: Path, tmp_path: Path, from_scratch: None, row: str) -> None:
    """From scratch, and then from the weights that came of it."""
    network = YOLO[row]
    arguments = Namespace(out=tmp_path, data=folder.parent, yolo_weights=[], threads=1)
    write_config("one", data_set(folder), tmp_path, SIZE)
    job = Job(row, "one", 0, 12, SIZE)
    record = trained(job, arguments)
    assert record["seen"] == 12 and record["start"] == f"{network}, from scratch" and record["threads"] == 1
    assert 0 <= record["map"] <= record["ap50"] <= 100 and record["versions"]["ultralytics"]
    weights = tmp_path / f"{network}.pt"
    shutil.copy(tmp_path / "ultralytics" / "one" / "yolo-runs" / job.name / "weights" / "last.pt", weights)
    arguments.yolo_weights = [weights]
    record = trained(replace(job, row=f"{row}-coco"), arguments)
    assert record["start"] == f"{network}, COCO"
    assert "Transferred" in (tmp_path / "logs" / f"{row}-coco-one-seed0.log").read_text()
