"""How much of the training time goes into waiting for pictures is measured, shown, and answered with advice."""

from __future__ import annotations

import csv
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import trainer.data.cache
from isodet.strict import build
from runtime.datasets.annotations import ImageRecord, make_record
from tests.trainer.tiny import tiny_config
from trainer.config.data import DataConfig
from trainer.config.train import TrainConfig
from trainer.data import data_wait as waiting
from trainer.data.data_wait import TOLERATED, advice, timed
from trainer.loop import fit

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PICTURES = (4, 2)


@pytest.fixture(scope="module")
def config(data: Path) -> TrainConfig:
    return tiny_config(data, "schedule.epochs=3", "batch_size=2", "val_interval=3")


def test_slow_pictures_are_measured_shown_and_advised_on_once(config, tmp_path, monkeypatch, capsys):
    real, slow = trainer.data.cache.read_image, 0.5

    def reading(path: Path) -> np.ndarray:
        if path.parent.name == "train":
            time.sleep(slow)
        return real(path)

    monkeypatch.setattr(trainer.data.cache, "read_image", reading)
    run = fit(config, tmp_path).run
    said = capsys.readouterr().err
    assert said.count("waiting for pictures took") == 1 and "data.cache=ram" in said and "% waiting" in said
    rows = [*csv.DictReader((run / "metrics.csv").open())]
    for row in rows:
        training = 4 / float(row["images_per_s"])
        assert 4 * slow <= float(row["data_wait"]) / 100 * training <= training + 1e-6
    assert "% of the training in them waiting for pictures" in (run / "report.html").read_text()


def test_batches_pass_unchanged_and_only_their_own_time_counts():
    def batches() -> object:
        for i in range(3):
            time.sleep(0.02)
            yield i

    waits: list[float] = []
    start = time.monotonic()
    for expected, batch in enumerate(timed(batches(), waits.append)):
        assert batch == expected
        time.sleep(0.05)
    assert len(waits) == 3 and min(waits) >= 0.02 and sum(waits) <= time.monotonic() - start - 0.15


def record(side: int, number: int = 0) -> ImageRecord:
    return make_record(number, Path(f"{number}.jpg"), side, side, ())


def with_data(config: TrainConfig, keys: dict[str, object]) -> TrainConfig:
    split = {"annotations": "a.json"}
    return replace(config, data=build(DataConfig, {"train": split, "val": split, **keys}))


@pytest.mark.parametrize(
    ("keys", "device", "cores", "side", "says", "not_says"),
    [
        ({}, CPU, 8, 64, ["data.cache=ram data.cache_gib=0.1", "data.workers=1 (now 0; on a CPU"], ["reduce_to"]),
        ({"cache": "disk"}, GPU, 16, 64, ["data.workers=16 (now 8)"], ["cache=", "on a CPU"]),
        ({"cache": "ram", "workers": 4}, GPU, 4, 4000, ["data.reduce_to=128"], ["workers=", "cache="]),
        ({"cache": "ram", "workers": 4, "reduce_to": 128}, GPU, 4, 4000, ["fewer augmentations"], ["reduce_to="]),
    ],
)
def test_the_advice_names_what_is_not_done_yet(config, monkeypatch, keys, device, cores, side, says, not_says):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    config = with_data(config, keys)
    told = advice(0.2, config, device, [record(side)] * 3)
    assert told.startswith("waiting for pictures took 20 %") and all(text in told for text in says), told
    assert not any(text in told for text in not_says), told
    assert advice(TOLERATED, config, device, [record(side)]) == ""


def test_a_cache_that_memory_does_not_hold_goes_to_disk(config, monkeypatch):
    monkeypatch.setattr(waiting, "available_memory", lambda: 3 * 2**30)
    told = advice(1.0, with_data(config, {}), CPU, [record(1024, number) for number in range(1000)])  # 2.93 GiB decoded
    assert "data.cache=disk data.cache_gib=3 " in told
