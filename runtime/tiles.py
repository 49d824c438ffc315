"""Tiles: large frames are cut into parts that the network sees one by one, and what the parts show is merged.

The rule of the merge is in `Grid.merge`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from isodet.errors import ArgumentError
from runtime.detections import Detections

SMALLEST = 32
"""Pixels of the shortest side that a tile may have."""
MOST_OVERLAP = 0.9

TOUCH = 0.01
"""A box touches a border of its tile when it ends within this share of the tile's side, or within one pixel."""
CUT_RANK = 0.5
"""The factor by which the score of a cut box counts when the merge decides which box comes first."""
SAME = 0.5
"""The intersection over union above which two boxes that are each other's nearest are of one object."""


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """How frames are cut into tiles, so that small objects stay large enough for the network.

    >>> detector = Detector("best.onnx", threshold=0.5, tiles=Tiles(overlap=0.25))
    >>> detector("street.png")[0].names
    ['car']

    Tiles lie in rows. The last one of each row and column is moved back, so that it ends where the frame ends. A frame
    that fits into one tile is not cut. Raises ValueError for sizes and overlaps that make no sense.

    size: side of a tile, or its height and width, in pixels of the frame; the network enlarges or shrinks a tile of
        another size than its input (default: the size of frame that the model takes)
    overlap: share of a tile that it has in common with the next one, 0 to 0.9; an object of at most this size is whole
        in one of them
    whole: the network also looks at the whole frame, for objects that are larger than a tile
    """

    size: int | tuple[int, int] | None = None
    overlap: float = 0.2
    whole: bool = True

    def __post_init__(self) -> None:
        sides = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        whole_numbers = len(sides) == 2 and all(isinstance(s, int) and not isinstance(s, bool) for s in sides)
        if self.size is not None and not (whole_numbers and min(side or 0 for side in sides) >= SMALLEST):
            raise ArgumentError.of(
                "Tiles.size", f"expected pixels, or (height, width), of at least {SMALLEST}; got {self.size!r}"
            )
        if isinstance(self.overlap, bool) or not 0 <= self.overlap <= MOST_OVERLAP:
            raise ArgumentError.of(
                "Tiles.overlap", f"expected a share of the tile from 0 to {MOST_OVERLAP}, got {self.overlap!r}"
            )

    def describe(self) -> str:
        """The tiles in words, such as: tiles of the model's input size, overlap 0.2, and the whole picture."""
        sides = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        size = "the model's input size" if self.size is None else f"{sides[0]}x{sides[1]} (height x width)"
        frame = "and the whole picture" if self.whole else "without the whole picture"
        return f"tiles of {size}, overlap {self.overlap:g}, {frame}"

    def size_hw(self, frame_hw: tuple[int, int], stride: int) -> tuple[int, int]:
        """Height and width of the tiles, in frame pixels, for a model that takes frames of `frame_hw`.

        Raises ValueError for tiles smaller than `stride`, the largest of that model: a cell of its coarsest level would
        see more than a tile.
        """
        if self.size is None:
            return frame_hw
        height, width = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        if min(height, width) < stride:
            raise ArgumentError.of(
                "Tiles.size", f"expected at least {stride} pixels, the model's largest stride; got {self.size!r}"
            )
        return height, width

    def grid(self, frame_hw: tuple[int, int], tile_hw: tuple[int, int]) -> Grid:
        """The tiles of `tile_hw` in a frame of `frame_hw`, row by row; last the whole frame, where that is asked."""
        (height, width), (tile_height, tile_width) = frame_hw, tile_hw
        windows = [
            Window(x, y, x + min(tile_width, width), y + min(tile_height, height))
            for y in _starts(height, tile_height, self.overlap)
            for x in _starts(width, tile_width, self.overlap)
        ]
        if self.whole and len(windows) > 1:
            windows.append(Window(0, 0, width, height))
        return Grid(frame_hw, tuple(windows))


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin on an axis of `length` pixels. Neighbors share `overlap`, the last two of them often more."""
    last = max(0, length - tile)
    return [*range(0, last, max(1, tile - round(overlap * tile))), last]


class Window(NamedTuple):
    """A rectangle of whole pixels of a frame; x2 and y2 are the first ones beside it."""

    x1: int
    y1: int
    x2: int
    y2: int


@dataclass(frozen=True)
class Grid:
    """The parts of a frame that the network sees one by one."""

    frame_hw: tuple[int, int]
    windows: tuple[Window, ...]

    @classmethod
    def of_one(cls, frame_hw: tuple[int, int]) -> Grid:
        """A frame that is not cut."""
        return cls(frame_hw, (Window(0, 0, frame_hw[1], frame_hw[0]),))

    def merge(self, parts: Sequence[Detections], threshold: float) -> Detections:
        """The detections of the frame, in its pixels, from those of each window, in the window's pixels.

        It is greedy NMS by class, once, over the detections of all windows:

        1. A box is cut where it touches a border of its window that is not a border of the frame (`TOUCH`).
        2. Boxes are ranked by score, a cut one by half of its score (`CUT_RANK`), so that a part of an object does not
           come before a box of the whole object with nearly the same score. Among equals, the earlier window comes
           first, then the order in the window.
        3. In this order, a box is kept unless a kept box of its class, from another window, overlaps it by more than
           `threshold`. Where one of the two is cut, overlap is the intersection over the smaller area. Otherwise it is
           the intersection over the union.
        4. A `threshold` above 0.5 (`SAME`) counts as 0.5 for two boxes that are not cut and are each other's nearest:
           no box of the class in the other's window has more of its intersection over the union. The whole frame shows
           an object with fewer pixels than a tile, so their boxes of it differ more than boxes of one window do. Of
           two neighbors that both windows show, each is nearest to itself.

        Boxes of the same window are not compared: the NMS of the graph has done it. Scores stay as they are.
        """
        if len(self.windows) == 1:
            return parts[0]
        moved = [
            detections.boxes_xyxy + np.array([w.x1, w.y1] * 2, np.float32)
            for w, detections in zip(self.windows, parts, strict=True)
        ]
        boxes = np.concatenate(moved)
        cut = np.concatenate([self._cut(window, part) for window, part in zip(self.windows, moved, strict=True)])
        windows = np.repeat(np.arange(len(parts)), [len(detections) for detections in parts])
        scores = np.concatenate([detections.scores for detections in parts])
        labels = np.concatenate([detections.labels for detections in parts])
        ranks = scores * np.where(cut, np.float32(CUT_RANK), np.float32(1))
        place = np.empty(len(boxes), np.intp)
        place[np.argsort(-ranks, kind="stable")] = np.arange(len(boxes))
        pairs = _overlapping(boxes.astype(np.float64), windows, labels, cut, threshold)
        pairs = np.take_along_axis(pairs, np.argsort(place[pairs], axis=1), axis=1)  # the one that comes first, first
        kept = np.ones(len(boxes), bool)
        # By the place of the first, so that it is certain by then whether the first one is kept.
        for first, second in pairs[np.argsort(place[pairs[:, 0]], kind="stable")].tolist():
            if kept[first]:
                kept[second] = False
        by_score = np.flatnonzero(kept)
        by_score = by_score[np.argsort(-scores[by_score], kind="stable")]
        return Detections(boxes[by_score], scores[by_score], labels[by_score], parts[0].class_names)

    def _cut(self, window: Window, boxes_xyxy: NDArray[np.float32]) -> NDArray[np.bool_]:
        """[D]: which boxes [D, 4], in frame pixels, an inner border of their window may have cut."""
        x1, y1, x2, y2 = boxes_xyxy.T.astype(np.float64)
        near_x = max(1.0, TOUCH * (window.x2 - window.x1))
        near_y = max(1.0, TOUCH * (window.y2 - window.y1))
        height, width = self.frame_hw
        cut: NDArray[np.bool_] = (window.x1 > 0) & (x1 <= window.x1 + near_x)
        cut |= (window.y1 > 0) & (y1 <= window.y1 + near_y)
        cut |= (window.x2 < width) & (x2 >= window.x2 - near_x)
        cut |= (window.y2 < height) & (y2 >= window.y2 - near_y)
        return cut


def _overlapping(
    boxes: NDArray[np.float64],
    windows: NDArray[np.intp],
    labels: NDArray[np.int32],
    cut: NDArray[np.bool_],
    threshold: float,
) -> NDArray[np.intp]:
    """[P, 2]: the numbers of every pair of boxes [D, 4] that overlap by more than `threshold`, by the rule of the
    merge: they are of one class and from different `windows` [D].

    Only windows that meet are compared, and of these only the boxes that reach into both: a small part of all pairs.
    """
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    groups = [np.flatnonzero(windows == number) for number in np.unique(windows)]
    hulls = np.array([[*boxes[group, :2].min(axis=0), *boxes[group, 2:].max(axis=0)] for group in groups])
    pairs = [np.empty((0, 2), np.intp)]
    for number, group in enumerate(groups):
        for neighbor in np.flatnonzero(_meets(hulls[number + 1 :], hulls[number])) + number + 1:
            a = group[_meets(boxes[group], hulls[neighbor])]
            b = groups[neighbor][_meets(boxes[groups[neighbor]], hulls[number])]
            low = np.maximum(boxes[a, None, :2], boxes[b, :2])
            sides = np.maximum(np.minimum(boxes[a, None, 2:], boxes[b, 2:]) - low, 0)
            shared = sides[..., 0] * sides[..., 1]
            smaller, union = np.minimum(areas[a, None], areas[b]), areas[a, None] + areas[b] - shared
            of_class, any_cut = labels[a, None] == labels[b], cut[a, None] | cut[b]
            # A product, so that boxes without area, which float32 may make of thin ones, suppress nothing.
            too_much = shared > threshold * np.where(any_cut, smaller, union)
            iou = np.where(of_class, shared / np.maximum(union, np.finfo(np.float64).tiny), 0.0)
            highest = [iou.max(axis=axis, keepdims=True, initial=0.0) for axis in (0, 1)]
            nearest = (iou == highest[0]) & (iou == highest[1])
            rows, columns = np.nonzero(of_class & (too_much | (nearest & ~any_cut & (iou > SAME))))
            pairs.append(np.stack([a[rows], b[columns]], axis=1))
    return np.concatenate(pairs)


def _meets(boxes: NDArray[np.float64], box: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[D]: which boxes [D, 4] have an area in common with `box` [4]."""
    x1, y1, x2, y2 = boxes.T
    meets: NDArray[np.bool_] = (x1 < box[2]) & (y1 < box[3]) & (x2 > box[0]) & (y2 > box[1])
    return meets
