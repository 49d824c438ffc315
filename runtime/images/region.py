"""Region of interest: the part of a frame that the detector sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isodet.errors import ArgumentError
from runtime.detections import Detections

Roi = Sequence[float] | Sequence[Sequence[float]] | NDArray[np.generic]
"""(x1, y1, x2, y2), or the corners [(x, y), ...] of a polygon, in frame pixels."""


@dataclass(frozen=True)
class Region:
    """A rectangle of a frame, or a polygon in the rectangle around it.

    The detector sees only the rectangle, so that small objects of the frame are larger in the network's input. A
    polygon keeps the detections whose box has its center inside. Pixels beside it stay visible, since no detector was
    trained on a black surrounding.
    """

    box_xyxy: tuple[float, float, float, float]
    polygon_xy: tuple[tuple[float, float], ...] | None = None

    @classmethod
    def of(cls, roi: Roi) -> Region:
        """The region of `roi`. Raises ValueError for anything that is neither a rectangle nor a polygon."""
        try:
            points = np.asarray(roi, np.float64)
        except (TypeError, ValueError):
            points = np.empty(0)
        if not np.isfinite(points).all() or not (points.shape == (4,) or (points.ndim == 2 and points.shape[1] == 2)):
            raise ArgumentError.of(
                "roi", f"expected (x1, y1, x2, y2), or corners [(x, y), ...] of a polygon; got {roi!r}"
            )
        if points.ndim == 2 and len(points) < 3:
            raise ArgumentError.of("roi", f"expected at least 3 corners of a polygon, got {len(points)}")
        if points.ndim == 2:
            (x1, y1), (x2, y2) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        else:
            x1, y1, x2, y2 = points.tolist()
        if x2 <= x1 or y2 <= y1:
            raise ArgumentError.of("roi", f"expected x1 < x2 and y1 < y2, got {roi!r}")
        polygon = tuple((x, y) for x, y in points.tolist()) if points.ndim == 2 else None
        return cls((x1, y1, x2, y2), polygon)

    def window(self, frame_hw: tuple[int, int]) -> tuple[int, int, int, int]:
        """The whole pixels (x1, y1, x2, y2) of the rectangle that lie in the frame. Raises ValueError for none."""
        height, width = frame_hw
        x1, y1 = max(0, math.floor(self.box_xyxy[0])), max(0, math.floor(self.box_xyxy[1]))
        x2, y2 = min(width, math.ceil(self.box_xyxy[2])), min(height, math.ceil(self.box_xyxy[3]))
        if x2 <= x1 or y2 <= y1:
            raise ArgumentError.of(
                "roi", f"{self.box_xyxy} lies outside of this frame of {width}x{height} (width x height)"
            )
        return x1, y1, x2, y2

    def to_frame(self, detections: Detections, frame_hw: tuple[int, int]) -> Detections:
        """Detections in pixels of the rectangle as detections in frame pixels, without those outside a polygon."""
        x1, y1, _, _ = self.window(frame_hw)
        boxes = detections.boxes_xyxy + np.array([x1, y1, x1, y1], np.float32)
        moved = Detections(boxes, detections.scores, detections.labels, detections.class_names)
        return moved if self.polygon_xy is None else moved[self._holds((boxes[:, :2] + boxes[:, 2:]) / 2)]

    def _holds(self, points_xy: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
        """[D]: the even-odd rule, for points [D, 2]: inside where a ray to the right crosses an odd number of edges."""
        a = np.array(self.polygon_xy, np.float64)
        b = np.roll(a, -1, axis=0)
        x, y = points_xy[:, :1].astype(np.float64), points_xy[:, 1:].astype(np.float64)
        spans = (a[:, 1] > y) != (b[:, 1] > y)  # [D, corners]
        rise = np.where(a[:, 1] == b[:, 1], 1.0, b[:, 1] - a[:, 1])
        crossing = a[:, 0] + (y - a[:, 1]) * (b[:, 0] - a[:, 0]) / rise
        inside: NDArray[np.bool_] = np.count_nonzero(spans & (x < crossing), axis=1) % 2 == 1
        return inside
