"""Where pixels are, for tests that follow boxes through augmentations."""

from __future__ import annotations

import numpy as np


def extent(mask: np.ndarray) -> list[int] | None:
    """[x0, y0, x1, y1] around all that is true in a mask [H, W]; None where nothing is."""
    rows, columns = (np.flatnonzero(mask.any(axis)).tolist() for axis in (1, 0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if rows else None
