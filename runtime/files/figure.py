"""Figures of matplotlib without a window system and without its global state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runtime.files.write import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` by `height` inches, with 110 pixels to each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> Path:
    """Write `figure` as a PNG at `path`, completely or not at all; returns the path. Raises OSError."""
    with replacing(path) as partial:
        figure.savefig(partial, format="png")
    return path
