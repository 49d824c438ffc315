"""Validation losses: the detection loss's own, recorded beside the mAP, and without a trace in the weights."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from models.checkpoint import build_detector
from models.loss import detection_loss
from runtime.datasets.coco import read_coco
from runtime.images.image import letterbox, read_image
from tests.trainer.tiny import alike, tiny_config
from trainer.config.train import TrainConfig
from trainer.log.metrics import VAL_LOSSES, read_metrics
from trainer.loop import fit
from trainer.validation_loss import validation_losses

PICTURES = (8, 5)


def config(data: Path, *overrides: str) -> TrainConfig:
    return tiny_config(data, "schedule.epochs=3", "val_interval=2", *overrides)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(config(data, "val_loss=true"), tmp_path_factory.mktemp("runs"), quiet=True).run


def test_the_weights_are_those_of_a_run_without(data, run, tmp_path):
    other = fit(config(data), tmp_path, quiet=True).run
    assert alike(run, other)
    assert not any(set(VAL_LOSSES) & set(row) for row in read_metrics(other / "metrics.csv"))


def test_they_are_recorded_where_the_map_is(run):
    rows = read_metrics(run / "metrics.csv")
    assert [VAL_LOSSES[0] in row for row in rows] == ["map" in row for row in rows] == [False, True, True]
    for row in rows[1:]:
        total, *terms = (row[name] for name in VAL_LOSSES)
        assert total == pytest.approx(sum(terms), rel=1e-4) and terms[0] > 0
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    assert {f"val/{name.removeprefix('val_')}" for name in VAL_LOSSES} | {"val/map"} <= set(board.Tags()["scalars"])
    assert len(board.Scalars("val/loss")) == 2
    page = (run / "report.html").read_text()
    assert all(title in page for title in ("Precision and recall", "Confusion", "Validation pictures"))
    assert (run / "plots" / "loss.png").is_file() and (run / "plots" / "confusion.png").is_file()


def test_it_is_the_criterion_on_letterboxed_pictures(data, run):
    settings = config(data, "val_loss=true")
    model, _ = build_detector(run / "last.pt")
    val = read_coco(data / "val.json", data / "val", settings.model.classes)
    random = torch.get_rng_state()
    ours = torch.stack(list(validation_losses(settings, model.train(), val, torch.device("cpu"), None)))
    assert model.training and torch.equal(torch.get_rng_state(), random)
    model.eval()
    sums = torch.zeros(3)
    for start in (0, 4):  # batches of four, the last of one: each weighs by its pictures
        records = val.records[start : start + 4]
        images, boxes = [], torch.zeros(len(records), 20, 4)
        labels = torch.full((len(records), 20), -1)
        for i, record in enumerate(records):
            image, placement = letterbox(read_image(record.path), settings.model.input_size_hw)
            images.append(image)
            boxes[i, : len(record.labels)] = torch.from_numpy(placement.to_input(record.boxes_xyxy))
            labels[i, : len(record.labels)] = torch.from_numpy(record.labels)
        with torch.no_grad():
            raw = model(torch.from_numpy(np.stack(images)))
            losses = detection_loss(settings.model, raw, model.priors(), boxes, labels)
        sums += torch.stack(list(losses)) * len(records)
    torch.testing.assert_close(ours, sums / len(val.records), rtol=1e-5, atol=1e-6)


def test_broken_pictures_and_none_at_all(own, run):
    settings = config(own)
    model, _ = build_detector(run / "last.pt")
    val = read_coco(own / "val.json", own / "val", settings.model.classes)
    for number, record in enumerate(val.records):
        record.path.write_bytes(b"broken")
        losses = validation_losses(settings, model, val, torch.device("cpu"), None)
        assert all(math.isnan(v) == (number == 4) for v in torch.stack(list(losses)).tolist())
