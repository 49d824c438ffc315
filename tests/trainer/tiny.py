"""Trainings of about a second: the keys that tests lay over the shapes recipe, and what they read from runs."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isodet.strict import to_mapping
from models.checkpoint import read_checkpoint, save_checkpoint
from models.detector import Detector
from runtime.images.image import Image
from trainer.augment.geometry import Picture
from trainer.config.train import TrainConfig
from trainer.config_reader import read_config
from trainer.data.train_set import Batch, Sample
from trainer.run.checkpoint_card import checkpoint_card

TINY = ["schedule.epochs=2", "batch_size=4", "model.input_size_hw=[64,64]", "model.backbone.width=0.125",
        "model.neck.channels=16", "amp=off", "val_interval=1"]  # fmt: skip

# For comparisons of batches that are cut differently. GroupNorms: BatchNorms see half a batch in each of two processes.
# SGD: Adam turns rounding into steps of full length.
CUT_ALIKE = ["model.backbone.norm=gn", "model.neck.norm=gn", "model.head.norm=gn", "optim.kind=sgd", "optim.lr=0.01"]


def tiny_config(data: Path, *overrides: str) -> TrainConfig:
    """The recipe in the folder `data`, as small as `TINY` makes it, with `overrides` on top."""
    return read_config(data / "shapes.yaml", [*TINY, *overrides])


class InOrder:
    """A reader of training pictures that gives `pictures` one after the other, and `background` for every file."""

    def __init__(self, pictures: Sequence[Picture | None], background: Image | None = None) -> None:
        self.pictures, self._left, self._background = pictures, iter(pictures), background

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, index: int) -> Picture | None:
        return next(self._left)

    def background(self, path: Path) -> Image | None:
        return self._background


def same(a: Sample | None, b: Sample | None) -> bool:
    """Whether two training samples are the same, and none is missing."""
    return a is not None and b is not None and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def one_object() -> Batch:
    """A random picture of 64x64 px with one object, as a batch."""
    return Batch(
        torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8), torch.tensor([[[8.0, 8, 40, 40]]]),
        torch.tensor([[1]]), [1], torch.tensor([[64, 64]]),
    )  # fmt: skip


def save_random(path: Path, settings: TrainConfig, **card: object) -> Path:
    """Write a checkpoint of random weights whose predictions are not all alike, with keys of `card` in its card."""
    torch.manual_seed(1)
    model = Detector(settings.model)
    torch.nn.init.normal_(model.head.cls.weight, std=0.5)
    said = checkpoint_card(settings.model, {}, to_mapping(settings)).to_json() | card
    save_checkpoint(path, model.state_dict(), said)
    return path


def weights(path: Path) -> dict[str, Tensor]:
    return read_checkpoint(path)["model"]


def alike(run: Path, other: Path, name: str = "last.pt") -> bool:
    """Whether two runs ended with the same weights, to the last bit."""
    one, two = weights(run / name), weights(other / name)
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def edit(file: Path, **keys: Any) -> None:
    """Replace keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | keys), encoding="utf-8")


def rates(run: Path) -> list[float]:
    """The learning rate of each epoch, as metrics.csv has it."""
    return [float(row["lr"]) for row in csv.DictReader((run / "metrics.csv").open())]
