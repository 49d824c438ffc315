"""Pictures of a measurement: precision against recall, F1 against the threshold, the confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtime.evaluation.confusion import BACKGROUND, Confusion
from runtime.evaluation.curves import Curve
from runtime.evaluation.details import Measurement
from runtime.evaluation.plot_names import plot_names, set_fonts
from runtime.files.figure import new_figure, save_figure

CURVES, CONFUSION = "curves.png", "confusion.png"
_NAMED = 10
"""Classes that a legend can hold."""
_NUMBERED = 30
"""Classes whose matrix has room for numbers."""
_COLORS = (*(f"C{i}" for i in range(7)), "darkgreen", "C8", "C9")  # C7 is gray, the color of classes without a name


def write_plots(measurement: Measurement, folder: Path) -> list[Path]:
    """Write the plots that have data into `folder`, and remove older files of those that have none."""
    written = []
    names = measurement.confusion.names
    labels = dict(zip(names, plot_names(names), strict=True))
    figures = {CURVES: _curves(measurement, labels), CONFUSION: _confusion(measurement.confusion, labels)}
    for name, figure in figures.items():
        (folder / name).unlink(missing_ok=True)
        if figure is not None:
            set_fonts(figure, names)
            written.append(save_figure(figure, folder / name))
    return written


def _curves(measurement: Measurement, labels: Mapping[str, str]) -> Any:
    """Left precision against recall, right F1 against the threshold, with a dot at the threshold of each class."""
    with_objects = [(c, s) for c, s in zip(measurement.curves, measurement.classes, strict=True) if c.objects]
    if not with_objects:
        return None
    figure = new_figure(12, 4.6)
    left, right = figure.subplots(1, 2)
    worst = {c.name for c, _ in sorted(with_objects, key=lambda pair: pair[0].ap50)[:_NAMED]}
    named = [c.name for c, _ in with_objects if c.name in worst]
    recalls = np.linspace(0, 1, 101)
    for curve, score in with_objects:
        style = _style(curve, named, labels)
        left.plot(recalls, curve.sampled(), **style)
        # A dot may lie below the line of its class: the line shows the best precision at that recall or a higher one.
        right.plot(*_f1_steps(curve), **{**style, "label": None})
        if curve.name not in worst:
            continue
        if not math.isnan(score.precision):
            left.plot(score.recall, score.precision, "o", color=style["color"], markersize=4)
        if score.measured:
            right.plot(score.threshold, score.f1, "o", color=style["color"], markersize=4)
    mean = np.mean([c.sampled() for c, _ in with_objects], axis=0)
    left.plot(recalls, mean, color="black", linewidth=2.4, label=f"mean {100 * mean.mean():.1f}")
    left.set(xlabel="recall", ylabel="precision", title="precision and recall at IoU 0.5")
    chosen = "best F1" if measurement.precision is None else f"precision of {measurement.precision:g}"
    right.set(xlabel="threshold", ylabel="F1", title=f"F1 over the threshold; dots: {chosen}")
    for axes in (left, right):
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    title = "AP50" if len(with_objects) <= _NAMED else f"AP50, {_NAMED} lowest of {len(with_objects)}"
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, title=title, loc="outside right upper")
    return figure


def _style(curve: Curve, named: list[str], labels: Mapping[str, str]) -> dict[str, Any]:
    if curve.name not in named:
        return {"color": "0.75", "linewidth": 0.8}
    color = _COLORS[named.index(curve.name)]
    return {"color": color, "linewidth": 1.3, "label": f"{labels[curve.name]} {100 * curve.ap50:.1f}"}


def _f1_steps(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Thresholds [201] and the F1 that each gives."""
    grid = np.linspace(0, 1, 201)
    kept = np.searchsorted(-curve.scores, -grid, side="right")
    f1 = np.concatenate([[0.0], curve.f1])
    return grid, f1[kept]


def _confusion(matrix: Confusion, labels: Mapping[str, str]) -> Any:
    """Rows are true classes, columns reported ones; colors are shares of the row, numbers are counts."""
    counts = matrix.counts
    if not counts.any():
        return None
    size = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(20.0, max(4.5, 0.42 * size + 2))
    figure = new_figure(side + 0.8, side)
    axes = figure.subplots()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(shown, ax=axes, label="share of the row", shrink=0.8)
    font = min(8.0, 72 * side * 0.65 / size)  # points, of the height of a row
    ticks = [*(labels[name] for name in matrix.names), BACKGROUND]
    axes.set_xticks(range(size), ticks, rotation=90 if max(map(len, ticks)) > 2 else 0, fontsize=font)
    axes.set_yticks(range(size), ticks, fontsize=font)
    axes.set(xlabel="reported", ylabel="there", title="confusion at IoU 0.5")
    axes.axhline(size - 1.5, color="0.5", linewidth=0.8)
    axes.axvline(size - 1.5, color="0.5", linewidth=0.8)
    if size <= _NUMBERED + 1:
        for row, column in zip(*counts.nonzero(), strict=True):
            ink = "white" if shares[row, column] > 0.55 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=ink, fontsize=7)
    return figure
