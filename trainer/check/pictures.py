"""The pictures of `trainer check-data`: plots of classes and sizes, and a sheet of samples."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isodet.selection import evenly_spread
from models.loss import REGION
from runtime.datasets.coco import CocoDataset
from runtime.detections import Detections
from runtime.evaluation.plot_names import plot_names, set_fonts
from runtime.files.figure import new_figure, save_figure
from runtime.images.draw import draw_detections, sheet
from runtime.images.image import Image, write_image
from trainer.config.train import TrainConfig
from trainer.data.train_set import TrainSet, resize_rule

_MOST_CLASSES = 60
_COLUMNS = 4
_CELL_HW = (320, 320)


def class_plot(train: Mapping[str, int], val: Mapping[str, int], path: Path) -> Path:
    """Bars of the objects of each class, the most frequent first, as a PNG at `path`."""
    ranked = sorted(train, key=lambda name: -train[name])[:_MOST_CLASSES]
    figure = new_figure(7, max(2.5, 0.22 * len(ranked) + 1))
    axes = figure.add_subplot()
    rows = np.arange(len(ranked))
    axes.barh(rows - 0.2, [train[name] for name in ranked], 0.4, label="train")
    axes.barh(rows + 0.2, [val[name] for name in ranked], 0.4, label="val")
    axes.set_yticks(rows, plot_names(ranked, most=40))
    axes.invert_yaxis()
    axes.set(xlabel="objects")
    axes.set_title(f"classes ({len(ranked)} of {len(train)}, most frequent first)", loc="left")
    # Above the axes: bars may reach into every corner.
    axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
    set_fonts(figure, ranked)
    return save_figure(figure, path)


def size_plot(sides: Mapping[str, NDArray[np.floating]], path: Path) -> Path:
    """Histograms of box sides [G] (input pixels) by split name, as a PNG at `path`."""
    figure = new_figure(7, 3.6)
    axes = figure.add_subplot()
    edges = np.geomspace(1, 2048, 45)
    for name, values in sides.items():
        share = np.histogram(values, edges)[0] / max(1, len(values))
        axes.stairs(share, edges, label=f"{name} ({len(values)})")
    for limit in (32, 96):
        axes.axvline(limit, color="0.7", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(
        xlabel="side of a square of the box's area, at the input, px (lines: 32 and 96)", ylabel="share of objects"
    )
    axes.legend(frameon=False)
    return save_figure(figure, path)


def sample_sheet(
    dataset: CocoDataset, unusable: Collection[Path], config: TrainConfig, path: Path, count: int = 8
) -> list[Path]:
    """Training pictures with their boxes: letterboxed, and below it one augmented view; [] if none is usable."""
    chosen = spread_pictures(dataset, unusable, count)
    if not chosen:
        return []
    augmented = TrainSet(dataset, resize_rule(config.model), config.augment, config.seed)
    plain = augmented.plain()
    columns = min(_COLUMNS, len(chosen))
    images: list[Image] = []
    captions: list[str] = []
    for start in range(0, len(chosen), columns):
        row = chosen[start : start + columns]
        gap = columns - len(row)
        for view, suffix in ((plain, ""), (augmented, " augmented")):
            images += [drawn_sample(view, i, dataset.class_names) for i in row]
            images += [np.full((*_CELL_HW, 3), 32, np.uint8)] * gap
            captions += [dataset.records[i].path.name + suffix for i in row] + [""] * gap
    write_image(path, sheet(images, columns, _CELL_HW, captions))
    return [path]


def spread_pictures(dataset: CocoDataset, unusable: Collection[Path], count: int, empty: bool = False) -> list[int]:
    """Up to `count` usable pictures, spread over the data: with objects where there are any, or `empty` ones."""
    usable = [i for i, record in enumerate(dataset.records) if record.path not in unusable]
    filled = [i for i in usable if len(dataset.records[i].labels)]
    candidates = [i for i in usable if not len(dataset.records[i].labels)] if empty else filled or usable
    return evenly_spread(candidates, count)


def drawn_sample(view: TrainSet, index: int, class_names: tuple[str, ...]) -> Image:
    """Item `index` of `view` (uint8 [H,W,3]) with its boxes and class names; black where it cannot be read."""
    sample = view[index]
    if sample is None:  # the file has changed since the check decoded it
        return np.zeros((*_CELL_HW, 3), np.uint8)
    scores = np.ones(len(sample.labels), np.float32)
    labels = np.where(sample.labels == REGION, len(class_names), sample.labels).astype(np.int32)
    truth = Detections(sample.boxes_xyxy, scores, labels, (*class_names, "ignored"))
    return draw_detections(sample.image, truth, scores=False)
