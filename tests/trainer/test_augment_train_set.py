"""The training set under augmentations that read other pictures: the same items whoever loads them, and whenever."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from isodet.strict import ConfigError, build
from runtime.datasets.coco import CocoDataset, read_coco
from runtime.detections import Detections
from runtime.images.image import FixedSize, ShortSide, write_image
from tests.at_fault import raises
from tests.trainer.tiny import same
from trainer.augment import augment
from trainer.augment.pipeline import needs_sources
from trainer.config.train import AugmentConfig
from trainer.data.train_set import TrainSet, collate, init_worker
from trainer.prepare.negatives import MiningError, mine_negatives, read_negatives
from trainer.recipes import make_shapes

SIZE = FixedSize((96, 96))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    folder = tmp_path_factory.mktemp("shapes")
    make_shapes(folder / "set", 14, 1, seed=2)
    return read_coco(folder / "set" / "train.json", folder / "set" / "train")


@pytest.fixture(scope="module")
def negatives_file(shapes: CocoDataset) -> Path:
    path = shapes.images_dir.parent / "negatives.json"
    mine_negatives(Everywhere(shapes.class_names), shapes, path, score=0.5)
    return path


class Everywhere:
    """Finds something in each corner of a picture, and exactly one annotated object's place, (30, 30, 50, 60)."""

    def __init__(self, class_names: tuple[str, ...]) -> None:
        self.class_names = class_names

    def __call__(self, frame: np.ndarray, threshold: float) -> list[Detections]:
        boxes = np.array([[30, 30, 50, 60], [0, 0, 20, 20], [100, 100, 128, 128], [5, 100, 8, 128]], np.float32)
        scores = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
        keep = scores >= threshold
        return [Detections(boxes[keep], scores[keep], np.array([0, 1, 2, 0], np.int32)[keep], self.class_names)]


def everything(negatives_file: Path, **changes: Any) -> AugmentConfig:
    half = {"probability": 0.5}
    sections: dict[str, Any] = {name: half for name in (
        "copy_paste", "trivial", "auto", "crop", "mosaic", "distort", "blur", "noise", "jpeg", "mixup")}  # fmt: skip
    return build(AugmentConfig, {
        **sections, "flip_vertical": 0.5,
        "hard_negatives": {"probability": 0.7, "file": str(negatives_file), "empty_only": False},
        "torchvision": [{"RandomPhotometricDistort": {"p": 0.5}}, {"RandomRotation": {"degrees": 10}}], **changes,
    })  # fmt: skip


def test_items_do_not_depend_on_who_loads_them_or_when(shapes, negatives_file):
    train, twin = (TrainSet(shapes, SIZE, everything(negatives_file), seed=5) for _ in range(2))
    train.set_epoch(3)
    order = [11, 2, 2, 7, 0]
    first = [train[i] for i in order]
    twin.set_epoch(3)
    np.random.seed(0)  # a generator of the process's own must play no part
    assert all(same(twin[i], item) for i, item in reversed(list(zip(order, first, strict=True))))
    loader = DataLoader(train, 4, collate_fn=collate, num_workers=2, worker_init_fn=init_worker)
    views = [view for batch in loader for view in batch.images.numpy()]
    items = [train[i] for i in range(len(train))]
    assert all(np.array_equal(item.image, view) for item, view in zip(items, views, strict=True))
    train.set_epoch(4)
    changed = [not same(train[i], item) for i, item in enumerate(items)]
    assert sum(changed) >= len(items) - 1


@pytest.mark.parametrize("resize", [SIZE, ShortSide(80, 133, 32, True, (100, 110, 120))])
def test_every_view_is_sound(shapes, negatives_file, resize):
    train = TrainSet(shapes, resize, everything(negatives_file, multi_scale={"probability": 0.5}), seed=1)
    most = max(len(record.labels) for record in shapes.records)
    counts = []
    for epoch in range(4):
        train.set_epoch(epoch)
        for index in range(len(train)):
            item = train[index]
            assert item is not None and item.image.dtype == np.uint8 and item.image.flags.c_contiguous
            height, width = item.image.shape[:2]
            assert height % 32 == 0 and width % 32 == 0 and item.image_id == shapes.records[index].id
            assert item.boxes_xyxy.dtype == np.float32 and item.labels.dtype == np.int64
            assert item.boxes_xyxy.shape == (len(item.labels), 4)
            assert (item.boxes_xyxy >= 0).all() and (item.boxes_xyxy <= [width, height, width, height]).all()
            assert (item.boxes_xyxy[:, 2:] - item.boxes_xyxy[:, :2] >= 1).all()
            assert ((item.labels >= 0) & (item.labels < 3)).all()
            counts.append(len(item.labels))
    assert max(counts) > most  # mosaic, mixup and paste brought others


def test_mosaic_and_mixup_end_before_training_does(shapes):
    on = build(AugmentConfig, {"mosaic": {"probability": 1, "close_epochs": 3},
                               "mixup": {"probability": 1, "close_epochs": 1}})  # fmt: skip
    off = {"mosaic": replace(on.mosaic, probability=0.0), "mixup": replace(on.mixup, probability=0.0)}
    train = TrainSet(shapes, SIZE, on, epochs=10)
    for epoch, config in ((6, on), (7, replace(on, mosaic=off["mosaic"])), (8, replace(on, mosaic=off["mosaic"])),
                          (9, replace(on, **off))):  # fmt: skip
        expected = TrainSet(shapes, SIZE, config)
        for dataset in (train, expected):
            dataset.set_epoch(epoch)
        assert all(same(train[i], expected[i]) for i in range(4)), epoch


def test_an_unreadable_picture_among_the_others_stops_nothing(tmp_path):
    make_shapes(tmp_path / "set", 6, 1)
    dataset = read_coco(tmp_path / "set" / "train.json", tmp_path / "set" / "train")
    for record in dataset.records[1:]:
        record.path.write_bytes(b"no picture")
    config = build(AugmentConfig, {name: {"probability": 1} for name in ("mosaic", "mixup", "copy_paste")})
    train = TrainSet(dataset, SIZE, config)
    for epoch in range(5):
        train.set_epoch(epoch)
        assert train[0] is not None
    assert set(train.unusable) <= {record.path for record in dataset.records[1:]} and train.unusable


def test_what_draws_from_elsewhere_says_so_without_sources(negatives_file):
    config = everything(negatives_file)
    assert needs_sources(config) == ["hard_negatives", "copy_paste", "mosaic", "mixup", "torchvision"]
    image = np.zeros((40, 40, 3), np.uint8)
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    with pytest.raises(ValueError, match="hard_negatives, copy_paste, mosaic, mixup, torchvision need `sources`"):
        augment(image, *none, SIZE, config, np.random.default_rng(0))


def test_regions_to_be_ignored_stay_while_a_pixel_is_left():
    image = np.zeros((100, 100, 3), np.uint8)
    boxes = np.array([[0, 0, 100, 100], [0, 0, 100, 100]], np.float32)
    config = build(AugmentConfig, {"flip": 0, "scale": [3, 3], "min_visible": 0.5, "color_probability": 0})
    _, left, labels = augment(image, boxes, np.array([-2, 1]), SIZE, config, np.random.default_rng(0))
    assert labels.tolist() == [-2] and left.tolist() == [[0, 0, 96, 96]]


def test_mining_keeps_what_overlaps_no_object(tmp_path):
    for i in range(3):
        write_image(tmp_path / f"{i}.png", np.zeros((128, 128, 3), np.uint8))
    coco = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 128, "width": 128} for i in range(3)],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}, {"id": 3, "name": "c"}],
        "annotations": [
            # Another class; an IoU of 0.09 with 30, 30, 50, 60, but all of it; and one pixel of 0, 0, 20, 20.
            {"id": 2, "image_id": 1, "category_id": 3, "bbox": [19, 19, 80, 80]},
            {"id": 3, "image_id": 2, "category_id": 1, "bbox": [90, 90, 38, 38], "iscrowd": 1},
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(coco))
    dataset = read_coco(tmp_path / "a.json", tmp_path)
    out = tmp_path / "deep" / "n.json"
    calls: list[tuple[int, int]] = []
    detector: Any = Everywhere(("a", "b", "c"))
    mined = mine_negatives(detector, dataset, out, 0.5, progress=lambda *c: calls.append(c))
    # Four in each; the one of 3 px is too thin. In 1 the first is part of an object; in 2 the third is inside a crowd.
    assert (mined.images, mined.detections, mined.found, mined.written) == (3, 12, 3 + 2 + 2, 7)
    assert calls[-1] == (3, 3) and mined.skipped == ()
    negatives = read_negatives(out)
    assert [n.score for n in negatives] == pytest.approx([0.9, 0.9, 0.8, 0.8, 0.8, 0.7, 0.7])
    assert [(n.path.resolve(), n.name) for n in negatives[:2]] == [(tmp_path / "0.png", "a"), (tmp_path / "2.png", "a")]
    assert negatives[0].box_xyxy == (30, 30, 50, 60)
    assert mine_negatives(detector, dataset, out, 0.5, limit=2).written == 2
    assert len(read_negatives(out)) == 2
    assert mine_negatives(detector, dataset, out, 0.5, max_overlap=0.001).found == 6  # without that pixel
    with raises(MiningError, path=dataset.annotations):
        mine_negatives(detector, dataset, dataset.annotations, 0.5)


def test_nothing_to_mine_is_said(tmp_path, shapes):
    detector: Any = Everywhere(shapes.class_names)
    with pytest.raises(MiningError, match="no false positive among 0 detections at a score of 0.95"):
        mine_negatives(detector, shapes, tmp_path / "n.json", 0.95)
    with raises(MiningError, key="score"):
        mine_negatives(detector, shapes, tmp_path / "n.json", 2)
    assert not (tmp_path / "n.json").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(format=2), "its format is 2, this isodet reads 1"),
        (lambda c: c.update(isodet="other"), "expected a file that `trainer mine-negatives` wrote"),
        (lambda c: c.update(negatives=[]), "it holds no negatives"),
        (lambda c: c["negatives"][0].pop("bbox"), "negatives[0]: expected"),
        (lambda c: c["negatives"][1].update(bbox=[0, 0, float("nan"), 4]), "negatives[1].bbox"),
        (lambda c: c["negatives"][0].update(file_name="gone.jpg"), "1 of its pictures are missing"),
        (None, "not valid JSON"),
    ],
)
def test_a_bad_file_of_negatives_is_refused_before_training(negatives_file, shapes, change, said):
    bad = negatives_file.with_name("bad.json")  # beside it, because its images folder is relative
    content = json.loads(negatives_file.read_text())
    if change is not None:
        change(content)
    bad.write_text(json.dumps(content) if change is not None else "{")
    config = build(AugmentConfig, {"hard_negatives": {"probability": 1, "file": str(bad)}})
    with pytest.raises(ConfigError) as error:
        TrainSet(shapes, SIZE, config)
    assert said in str(error.value) and "bad.json" in str(error.value)


def test_negatives_go_onto_empty_pictures_as_background(tmp_path):
    write_image(tmp_path / "source.png", np.full((100, 100, 3), (0, 0, 255), np.uint8))
    write_image(tmp_path / "empty.png", np.full((100, 200, 3), 60, np.uint8))
    write_image(tmp_path / "full.png", np.full((100, 200, 3), 60, np.uint8))
    names = ("empty.png", "full.png")
    coco = {
        "images": [{"id": i, "file_name": name, "height": 100, "width": 200} for i, name in enumerate(names)],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 20]}],
    }
    (tmp_path / "a.json").write_text(json.dumps(coco))
    row = {"image_id": 5, "file_name": "source.png", "bbox": [10, 60, 30, 20], "score": 0.9, "class": "a"}
    (tmp_path / "n.json").write_text(
        json.dumps({"isodet": "hard negatives", "format": 1, "images": ".", "classes": ["a"], "negatives": [row]})
    )
    dataset = read_coco(tmp_path / "a.json", tmp_path)
    config = build(AugmentConfig, {
        "flip": 0, "scale_probability": 0, "color_probability": 0,
        "hard_negatives": {"probability": 1, "file": str(tmp_path / "n.json"), "count": [1, 1], "scale": [1, 1]},
    })  # fmt: skip
    train = TrainSet(dataset, FixedSize((100, 200)), config)
    columns = set()
    for epoch in range(8):
        train.set_epoch(epoch)
        empty, full = train[0], train[1]
        assert empty is not None and full is not None and (full.image == 60).all() and len(full.labels) == 1
        rows, across = np.nonzero((empty.image == (0, 0, 255)).all(2))
        assert len(empty.labels) == 0 and len(rows) == 30 * 20
        assert abs((rows.min() + rows.max() + 1) / 2 - 70) <= 6  # as high as it was found, within 5 %
        columns.add(int(across.min()))
    assert len(columns) > 4  # and anywhere along the width
