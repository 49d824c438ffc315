"""The images with the most mistakes of a detector, each beside its true boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from runtime.datasets.annotations import EVERY_CLASS
from runtime.evaluation.details import Measurement
from runtime.evaluation.matching import IGNORED, INVENTED
from runtime.images.draw import Color, draw_boxes, sheet
from runtime.images.image import Image, read_image

_GREEN, _RED, _ORANGE, _GRAY = (60, 160, 20), (40, 40, 220), (0, 140, 255), (150, 150, 150)
_SIDE = 480


@dataclass(frozen=True)
class ImageScore:
    """One image at the recommended thresholds."""

    index: int
    """In the evaluation's `matches`."""
    found: int
    missed: int
    invented: int

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN); 1 where there is nothing to find and nothing was reported."""
        every = 2 * self.found + self.missed + self.invented
        return 2 * self.found / every if every else 1.0


def worst_images(measurement: Measurement) -> tuple[ImageScore, ...]:
    """Every image with a mistake: the lowest F1 first, and of equal ones the image with the most mistakes."""
    scores = []
    for index, m in enumerate(measurement.evaluation.matches):
        standing = m.standing(measurement.limits)
        hits = int(np.count_nonzero(standing & (m.object_of >= 0)))
        invented = int(np.count_nonzero(standing & (m.object_of == INVENTED)))
        scores.append(ImageScore(index, hits, int(np.count_nonzero(~m.record.crowd)) - hits, invented))
    wrong = [score for score in scores if score.missed or score.invented]
    return tuple(sorted(wrong, key=lambda s: (s.f1, -s.missed - s.invented)))


def worst_sheet(measurement: Measurement, scores: Sequence[ImageScore]) -> Image:
    """Two pictures for each of `scores`: the true boxes (missed in orange), and the reported ones (wrong in red)."""
    cells, captions = [], []
    for score in scores:
        m = measurement.evaluation.matches[score.index]
        names, standing = measurement.dataset.class_names, m.standing(measurement.limits)
        hit = set(m.object_of[standing & (m.object_of >= 0)].tolist())
        frame = read_image(m.record.path)
        truth = [_GRAY if crowd else _GREEN if g in hit else _ORANGE for g, crowd in enumerate(m.record.crowd)]
        true_names = [names[c] if c != EVERY_CLASS else "ignored" for c in m.record.labels]
        cells.append(drawn(frame, m.record.boxes_xyxy, true_names, truth))
        shown = m.detections[standing]
        outcome: dict[int, Color] = {INVENTED: _RED, IGNORED: _GRAY}
        colors = [outcome.get(o, _GREEN) for o in m.object_of[standing].tolist()]
        cells.append(drawn(frame, shown.boxes_xyxy, [f"{d.name} {d.score:.0%}" for d in shown], colors))
        captions += [f"{m.record.path.name}: {score.missed} missed", f"{score.found} right, {score.invented} wrong"]
    return sheet(cells, 4 if len(scores) > 1 else 2, (_SIDE, _SIDE), captions)


def drawn(frame: Image, boxes_xyxy: np.ndarray, texts: Sequence[str], colors: Sequence[Color]) -> Image:
    """`frame` in the size of a cell of the sheet, with boxes: drawn after the resize, so that letters are readable."""
    scale = _SIDE / max(frame.shape[:2])
    small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return draw_boxes(np.asarray(small, np.uint8), (boxes_xyxy * scale).tolist(), texts, colors)
