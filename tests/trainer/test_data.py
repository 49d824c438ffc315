"""The training set: the same items whoever loads them, and no picture file that stops a run."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from models.config.model import model_config
from models.detector import Raw
from models.loss import REGION, detection_loss
from models.priors import feature_sizes, priors
from runtime.datasets.coco import CocoDataset, read_coco
from runtime.images.image import FixedSize, letterbox, read_image
from tests.trainer.tiny import same
from trainer.config.train import AugmentConfig
from trainer.data.train_set import Sample, TrainSet, collate, init_worker
from trainer.recipes import make_shapes


@pytest.fixture()
def shapes(tmp_path: Path) -> CocoDataset:
    make_shapes(tmp_path / "set", 12, 1)
    return read_coco(tmp_path / "set" / "train.json", tmp_path / "set" / "train")


def test_items_depend_on_seed_epoch_and_index_only(shapes):
    train, twin = (TrainSet(shapes, FixedSize((96, 96)), AugmentConfig(), seed=5) for _ in range(2))
    _ = [twin[i] for i in (7, 2, 2, 9)]  # another history
    assert all(same(train[i], twin[i]) for i in range(12))
    twin.set_epoch(1)
    assert not any(np.array_equal(train[i].image, twin[i].image) for i in range(12))
    twin.set_epoch(0)
    assert same(train[3], twin[3])
    assert not same(train[3], TrainSet(shapes, FixedSize((96, 96)), AugmentConfig(), seed=6)[3])
    assert same(TrainSet(shapes, FixedSize((96, 96)), AugmentConfig(), seed=-1)[0],
                 TrainSet(shapes, FixedSize((96, 96)), AugmentConfig(), seed=-1)[0])  # fmt: skip


def test_worker_count_and_persistence_change_nothing(shapes):
    def epochs(workers: int) -> list[torch.Tensor]:
        train = TrainSet(shapes, FixedSize((64, 64)), AugmentConfig(), seed=1)
        kept = {"num_workers": workers, "persistent_workers": workers > 0}
        loader = DataLoader(train, 4, collate_fn=collate, worker_init_fn=init_worker, **kept)
        seen = []
        for epoch in range(2):
            train.set_epoch(epoch)
            for batch in loader:
                seen += [batch.images, batch.boxes_xyxy, batch.labels]
        return seen

    alone, two = epochs(0), epochs(2)
    assert len(alone) == len(two) == 18
    assert all(torch.equal(a, b) for a, b in zip(alone, two, strict=True))
    assert not torch.equal(alone[0], alone[9])  # the second epoch is another one


def test_workers_start_after_opencv_ran_with_threads_here(shapes):
    """A forked process inherits OpenCV's pool without its threads; `setNumThreads(1)` there hung every loader."""
    large = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
    for _ in range(3):
        for _ in range(3):
            cv2.resize(large, (900, 900)), cv2.transform(large, np.eye(3, 4))
        train = TrainSet(shapes, FixedSize((64, 64)), AugmentConfig())
        loader = DataLoader(train, 4, collate_fn=collate, num_workers=2, worker_init_fn=init_worker, timeout=20)
        assert sum(len(batch.images) for batch in loader) == 12


def test_without_augmentation_an_item_is_the_letterbox(shapes):
    train = TrainSet(shapes, FixedSize((64, 96)), None)
    for i, record in enumerate(shapes.records):
        sample = train[i]
        assert sample is not None and sample.image_id == record.id
        expected, placement = letterbox(read_image(record.path), (64, 96))
        assert np.array_equal(sample.image, expected)
        np.testing.assert_allclose(sample.boxes_xyxy, placement.to_input(record.boxes_xyxy), atol=1e-4)
        assert np.array_equal(sample.labels, record.labels)


def test_broken_vanished_and_turned_pictures_are_left_out_once_logged(shapes, caplog):
    cut, gone, turned = (shapes.records[i].path for i in (2, 5, 6))
    cut.write_bytes(cut.read_bytes()[:-200])
    gone.unlink()
    cv2.imwrite(str(turned), np.zeros((64, 128, 3), np.uint8))
    train = TrainSet(shapes, FixedSize((64, 64)), AugmentConfig())
    loader = DataLoader(train, 4, collate_fn=collate)
    with caplog.at_level(logging.WARNING):
        sizes = [[len(batch.images) for batch in loader] for _ in range(2)]
    assert sizes == [[3, 2, 4]] * 2
    assert train.unusable == [cut, gone, turned]
    messages = [record.getMessage() for record in caplog.records if record.name == "trainer.data.reader"]
    assert len(messages) == 3
    assert str(cut) in messages[0] and "truncated" in messages[0] and f"image id {shapes.records[2].id}" in messages[0]
    assert str(gone) in messages[1]
    assert "128x64" in messages[2] and "128x128" in messages[2]


def test_what_workers_could_not_read_is_known_outside_them(shapes):
    shapes.records[4].path.unlink()
    train = TrainSet(shapes, FixedSize((64, 64)), None)
    ids = [i for batch in DataLoader(train, 3, collate_fn=collate, num_workers=2) for i in batch.image_ids]
    assert len(ids) == 11 and shapes.records[4].id not in ids
    assert train.unusable == [shapes.records[4].path]


def test_crowds_are_regions_that_reach_the_loss(tmp_path):
    """From the file to the gradient: the crowd's pixels teach no background, the other objects stay objects."""
    make_shapes(tmp_path / "set", 6, 1)
    path = tmp_path / "set" / "train.json"
    coco = json.loads(path.read_text())
    first = coco["annotations"][0]
    first["iscrowd"] = 1
    path.write_text(json.dumps(coco))
    dataset = read_coco(path, tmp_path / "set" / "train")
    train = TrainSet(dataset, FixedSize((128, 128)), None)
    assert train.crowds == 1
    index = next(i for i, record in enumerate(dataset.records) if record.id == first["image_id"])
    sample = train[index]
    assert sample is not None and sample.labels.tolist() == [REGION, *dataset.records[index].labels[1:]]
    views = TrainSet(dataset, FixedSize((64, 96)), AugmentConfig(scale=(1.5, 3.0)))
    seen = []
    for epoch in range(40):
        views.set_epoch(epoch)
        view = views[index]
        assert view is not None
        seen += [(box[2:] - box[:2]).prod() for box, n in zip(view.boxes_xyxy, view.labels, strict=True) if n == REGION]
    whole = np.prod(first["bbox"][2:]) * 1.5**2 * (64 / 128) ** 2
    assert 40 > len(seen) > 5 and min(seen) < 0.25 * whole  # kept however little is left of it

    batch = collate([sample, sample._replace(boxes_xyxy=sample.boxes_xyxy[1:], labels=sample.labels[1:])])
    config = model_config({"classes": ["a", "b", "c"], "input_size_hw": [128, 128], "assign": {"kind": "center"}})
    grid = priors(feature_sizes((128, 128), (3, 7)), (8, 16, 32, 64, 128), config.anchors)
    N = len(grid.boxes_xyxy)
    raw = Raw(torch.zeros(2, N, 3, requires_grad=True), torch.zeros(2, N, 4), torch.zeros(2, N))
    detection_loss(config, raw, grid, batch.boxes_xyxy, batch.labels, batch.sizes_hw).cls.backward()
    learnt = raw.logits.grad.abs().sum(dim=-1) > 0
    x1, y1, x2, y2 = sample.boxes_xyxy[0]
    x, y = grid.points.unbind(-1)
    inside = (x > float(x1)) & (x < float(x2)) & (y > float(y1)) & (y < float(y2))
    assert inside.sum() > 4 and (learnt[0] | inside).all() and not (learnt[0] & inside).all() and learnt[1].all()


def test_collate_pads_and_survives_nothing():
    def sample(boxes: int, image_id: int) -> Sample:
        image = np.full((32, 64, 3), image_id, np.uint8)
        return Sample(image, np.ones((boxes, 4), np.float32), np.arange(boxes), image_id)

    batch = collate([sample(2, 7), None, sample(0, 8)])
    assert batch.images.shape == (2, 32, 64, 3) and batch.images.dtype == torch.uint8
    assert batch.boxes_xyxy.shape == (2, 2, 4) and batch.labels.tolist() == [[0, 1], [-1, -1]]
    assert batch.boxes_xyxy[1].eq(0).all() and list(batch.image_ids) == [7, 8]
    assert batch.sizes_hw.tolist() == [[32, 64], [32, 64]]
    wide = sample(1, 3)._replace(image=np.zeros((64, 32, 3), np.uint8))
    mixed = collate([sample(1, 2), wide])
    assert mixed.images.shape == (2, 64, 64, 3) and mixed.sizes_hw.tolist() == [[32, 64], [64, 32]]
    no_objects = collate([sample(0, 1)])
    assert no_objects.boxes_xyxy.shape == (1, 0, 4) and no_objects.labels.shape == (1, 0)
    for nothing in (collate([None, None]), collate([])):
        assert len(nothing.images) == 0 and nothing.boxes_xyxy.shape == (0, 0, 4) and list(nothing.image_ids) == []
        assert nothing.sizes_hw.shape == (0, 2)
