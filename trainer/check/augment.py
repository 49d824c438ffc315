"""The pictures of `trainer check-data --augment`: each augmentation alone, before and after, and all together."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from runtime.datasets.annotations import CocoDataset
from runtime.images.draw import sheet
from runtime.images.image import Image, write_image
from trainer.check.pictures import drawn_sample, spread_pictures
from trainer.config.augment import AugmentConfig
from trainer.config.train import TrainConfig
from trainer.data.train_set import TrainSet, resize_rule

_ROWS, _VIEWS = 4, 3
_CELL_HW = (260, 260)
_SECTIONS = (
    "hard_negatives", "copy_paste", "trivial", "auto", "crop", "multi_scale", "mosaic", "distort", "blur", "noise",
    "jpeg", "mixup",
)  # fmt: skip
_PROBABILITIES = {"flip": "flip", "flip_vertical": "flip_vertical", "scale": "scale_probability",
                  "color": "color_probability"}  # fmt: skip
_LISTS = ("torchvision", "albumentations")

NAMES = (*_SECTIONS, *_PROBABILITIES, *_LISTS)
"""Every augmentation by the name of its picture."""


def switched_on(config: AugmentConfig) -> list[str]:
    """The augmentations of `NAMES` that `config` has on."""
    on = [name for name in _SECTIONS if getattr(config, name).probability]
    on += [name for name, key in _PROBABILITIES.items() if getattr(config, key)]
    return on + [name for name in _LISTS if getattr(config, name)]


def alone(config: AugmentConfig, name: str) -> AugmentConfig:
    """`config` with the augmentation `name` on every picture, in its own ranges, and all others off."""
    off: dict[str, Any] = dict.fromkeys(_PROBABILITIES.values(), 0.0) | dict.fromkeys(_LISTS, ())
    off |= {section: replace(getattr(config, section), probability=0.0) for section in _SECTIONS}
    if name in _SECTIONS:
        off[name] = replace(getattr(config, name), probability=1.0)
    elif name in _PROBABILITIES:
        off[_PROBABILITIES[name]] = 1.0
    else:
        off[name] = getattr(config, name)
    return replace(config, **off)


def augment_sheets(
    dataset: CocoDataset, unusable: Collection[Path], config: TrainConfig, out: Path, which: Literal["on", "all"],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Path], list[str]]:  # fmt: skip
    """Write `out/<name>.jpg` for each augmentation that is on (or, with "all", exists), `pipeline.jpg`, `overview.jpg`.

    A row has a training picture in the letterbox, and three views of it. The overview has one view of each
    augmentation: of its first picture, the one that differs most. Returns the paths of the pictures, and a line for
    each augmentation that cannot be shown.
    """
    names = list(NAMES) if which == "all" else switched_on(config.augment)
    shown, notes = [], []
    for name in names:
        if name == "hard_negatives" and config.augment.hard_negatives.file is None:
            notes.append("hard_negatives: not drawn without augment.hard_negatives.file (`trainer mine-negatives`)")
        elif name in _LISTS and not getattr(config.augment, name):
            notes.append(f"{name}: not drawn, because augment.{name} names no transform")
        else:
            shown.append(name)
    written, best = [], []
    variants = [(name, alone(config.augment, name)) for name in shown] + [("pipeline", config.augment)]
    for done, (name, augment) in enumerate(variants, start=1):
        empty = name == "hard_negatives" and augment.hard_negatives.empty_only
        chosen = spread_pictures(dataset, unusable, _ROWS, empty)
        if not chosen:
            notes.append(f"{name}: not drawn, there is no picture {'without objects' if dataset.records else 'at all'}")
        else:
            images = _sheet(dataset, chosen, config, augment, out / f"{name}.jpg")
            written.append(out / f"{name}.jpg")
            best.append((name, max(images[1 : 1 + _VIEWS], key=partial(_change, images[0]))))
        if progress is not None:
            progress(done, len(variants))
    if best:
        written.append(out / "overview.jpg")
        write_image(written[-1], sheet([view for _, view in best], 5, _CELL_HW, [name for name, _ in best]))
    return written, notes


def _change(before: Image, after: Image) -> float:
    """Mean difference of two pictures, the second brought to the size of the first."""
    resized = np.asarray(cv2.resize(after, (before.shape[1], before.shape[0])), np.float32)
    return float(np.abs(resized - before).mean())


def _sheet(
    dataset: CocoDataset, chosen: list[int], config: TrainConfig, augment: AugmentConfig, path: Path
) -> list[Image]:
    """Write the sheet; returns its pictures, row by row."""
    after = TrainSet(dataset, resize_rule(config.model), augment, config.seed)
    before = after.plain()
    images: list[Image] = []
    captions: list[str] = []
    for index in chosen:
        images.append(drawn_sample(before, index, dataset.class_names))
        captions.append(f"{dataset.records[index].path.name}, before")
        for epoch in range(_VIEWS):
            after.set_epoch(epoch)
            view = drawn_sample(after, index, dataset.class_names)
            images.append(view)
            captions.append(f"{path.stem}, {view.shape[1]}x{view.shape[0]}")
    write_image(path, sheet(images, 1 + _VIEWS, _CELL_HW, captions))
    return images
