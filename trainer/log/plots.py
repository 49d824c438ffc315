"""The pictures of a run: plots of its numbers, a sheet of its detections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from isodet.selection import evenly_spread
from runtime.datasets.annotations import CocoDataset
from runtime.datasets.orientation import oriented
from runtime.evaluation.evaluate import Evaluation
from runtime.files.figure import new_figure, save_figure
from runtime.images.draw import draw_detections, sheet
from runtime.images.image import read_image, write_image
from trainer.log.metrics import HELP, LOSSES, VAL_LOSSES

_TRUTH = (255, 255, 255)


def validation_sheet(dataset: CocoDataset, evaluation: Evaluation, path: Path, count: int = 12) -> None:
    """Write a contact sheet of `count` validation pictures: true boxes thin and white, detections colored."""
    records = [r for r in dataset.records if r.id in evaluation.detections]
    chosen = evenly_spread(records, count)
    cells = []
    for record in chosen:
        image = read_image(record.path)
        truth = np.rint(oriented(record, (image.shape[0], image.shape[1])).boxes_xyxy).astype(int)
        for x1, y1, x2, y2 in truth.tolist():
            cv2.rectangle(image, (x1, y1), (x2, y2), _TRUTH, 1, cv2.LINE_AA)
        cells.append(draw_detections(image, evaluation.detections[record.id].filter(threshold=evaluation.threshold)))
    if cells:
        write_image(path, sheet(cells, 4, (320, 320), [r.path.name for r in chosen]))


def metric_plots(rows: Sequence[dict[str, float]], folder: Path) -> list[Path]:
    """Losses and mAP over the epochs as PNG files; those that have no data yet are left out."""
    from matplotlib.ticker import MaxNLocator

    folder.mkdir(parents=True, exist_ok=True)
    scores = {"map": "mAP", "ap50": "AP50", "ap75": "AP75"}
    written = []
    terms = {key: key.replace("loss_", "") if key != "loss" else "total" for key in LOSSES}
    validated = any(VAL_LOSSES[0] in row for row in rows)
    terms |= {key: "_" + terms[key.removeprefix("val_")] for key in VAL_LOSSES}  # "_": not in the legend
    terms |= {key: key.replace("loss_", "") for key in HELP}
    for name, columns, title in (
        ("loss", terms, "loss: training, dashed validation" if validated else "training loss"),
        ("map", scores, "validation, COCO points"),
    ):
        figure = new_figure(6.4, 3.6)
        axes = figure.subplots()
        for column, label in columns.items():
            points = [(r["epoch"], r[column]) for r in rows if column in r]
            if points and any(y for _, y in points):
                x, y = zip(*points, strict=True)
                dashed = column in VAL_LOSSES
                color = f"C{(VAL_LOSSES if dashed else tuple(columns)).index(column)}"
                axes.plot(
                    x, y, "--" if dashed else "-", color=color, label=label, markersize=3,
                    marker="o" if len(x) < 40 else None,
                )  # fmt: skip
                if column == "map":
                    axes.annotate(f"{y[-1]:.1f}", (x[-1], y[-1]), textcoords="offset points", xytext=(0, 5), ha="right")
        if axes.lines:
            axes.set(xlabel="epoch", title=title)
            axes.set_ylim(bottom=0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
            axes.legend(frameon=False)
            written.append(save_figure(figure, folder / f"{name}.png"))
    return written
