"""A user's folder as files: parts that are right in `mine`, and a configuration to lay others upon."""

from __future__ import annotations

import sys
from pathlib import Path

from trainer.config.train import TrainConfig
from trainer.config_reader import read_config

BASE = """
data: {train: {annotations: a.json, images: a}, val: {annotations: a.json, images: a}}
model: {classes: [a, b], input_size_hw: [64, 64], backbone: {name: resnet18}, neck: {channels: 16}}
"""

GOOD = """
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Stem:
    width: int = 16
    kind: Literal["plain", "patch"] = "plain"


class Net(nn.Module):
    def __init__(self, *, stem: Stem = Stem(), names: tuple[str, ...] = ("x",), scale: float | None = None):
        super().__init__()
        self.channels = (stem.width,) * 4
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else stem.width, stem.width, 3, 2, 1) for i in range(5))

    def forward(self, x):
        features = []
        for conv in self.convs:
            x = conv(x)
            features.append(x)
        return features[1:]


class Neck(nn.Module):
    def __init__(self, c_in, channels, levels, *, gain: float = 1.0):
        super().__init__()
        self.pool, self.levels = nn.MaxPool2d(3, 2, 1), levels
        self.conv = nn.Conv2d(c_in[1], channels, 1)

    def forward(self, features):
        levels = [self.conv(features[1])]
        while len(levels) <= self.levels[1] - self.levels[0]:
            levels.append(self.pool(levels[-1]))
        return levels


def first(priors, boxes, valid, *, count: int = 1):
    matched = torch.full((len(valid), len(priors.strides)), -1)
    if boxes.shape[1]:
        matched[:, :count] = 0
    return matched


def l1(pred, target, *, power: float):
    return (pred - target).abs().mean(dim=1) ** power


def square(logits, targets):
    return (logits - targets) ** 2


def gray(image, boxes, labels, rng, *, strength: float = 1.0):
    return np.full_like(image, 100), boxes, labels


class NotAModule:
    def __init__(self, *, width: int = 1):
        raise AssertionError("must never be made")


TABLE = {}
"""


def forget(folder: Path) -> None:
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


def read(folder: Path, text: str, source: str = "") -> TrainConfig:
    """The configuration `text` on top of `BASE`, with `source` in the module `other` beside it."""
    (folder / "other.py").write_text("import torch\nfrom torch import nn\nimport mine\n" + source)
    (folder / "own.yaml").write_text("_base_: base.yaml\n" + text)
    return read_config(folder / "own.yaml")


ALL = """
model:
  backbone: {name: mine:Net, arguments: {stem: {kind: patch}, scale: 2}}
  neck: {kind: mine:Neck, levels: [3, 6]}
  assign: {kind: mine:first, arguments: {count: 3}}
  box: {loss: mine:l1, arguments: {power: 2}}
  loss: {cls: mine:square, hard_negatives: 3}
augment:
  own: [{name: mine:gray, arguments: {strength: 1}}, {name: mine:gray, probability: 0.5}]
"""
