"""Pictures of the images on which an artifact's detections differ most, side by side with the reference."""

from __future__ import annotations

import numpy as np

from export.verification.detection_diff import ImageDiff, partners
from export.verification.scores import Score, Verification
from runtime.detections import Detections
from runtime.evaluation.worst import drawn
from runtime.images.draw import Color, sheet
from runtime.images.image import Image, read_image

SHARED: Color = (60, 160, 20)
ONLY_REFERENCE: Color = (0, 140, 255)
ONLY_ARTIFACT: Color = (40, 40, 220)
_CELL = (480, 480)


def most_changed(score: Score, count: int = 8) -> tuple[ImageDiff, ...]:
    """The images whose detections moved most; if none moved, the first two."""
    most = tuple(image for image in score.images[:count] if image.moved >= 0.005)
    return most or score.images[:2]


def changed_sheet(verification: Verification, score: Score, count: int = 8) -> Image | None:
    """Two pictures for each of the images that moved most; None where there is no image.

    Left the reference, right the artifact. Green: both have the object. Orange: only the reference. Red: only the
    artifact. Detections below the reference's threshold in both are left out.
    """
    records = {record.id: record for record in verification.dataset.records}
    cells, captions = [], []
    for image in most_changed(score, count):
        record = records[image.image_id]
        frame = read_image(record.path)
        before = verification.reference.evaluation.detections[image.image_id]
        after = score.evaluation.detections[image.image_id]
        for detections, colors in zip((before, after), _colors(before, after, verification), strict=True):
            shown = [(d, color) for d, color in zip(detections, colors, strict=True) if color is not None]
            boxes = np.array([d.box_xyxy for d, _ in shown], np.float32).reshape(-1, 4)
            texts = [f"{d.name} {d.score:.0%}" for d, _ in shown]
            cells.append(drawn(frame, boxes, texts, [color for _, color in shown]))
        captions.append(f"{record.path.name}: {verification.reference.path.name}")
        captions.append(f"{image.unmatched} lost, {image.extra} new, up to {image.box_max_px:.1f} px")
    if not cells:
        return None
    return sheet(cells, 4 if len(cells) > 2 else 2, _CELL, captions)


def _colors(
    before: Detections, after: Detections, verification: Verification
) -> tuple[list[Color | None], list[Color | None]]:
    """A color for each detection of both sides; None for one that is not shown."""
    threshold = np.float32(verification.reference.evaluation.threshold)
    left: list[Color | None] = [ONLY_REFERENCE if score >= threshold else None for score in before.scores]
    right: list[Color | None] = [ONLY_ARTIFACT if score >= threshold else None for score in after.scores]
    for i, j in enumerate(partners(before, after)):
        if j >= 0:
            shown = max(before.scores[i], after.scores[j]) >= threshold
            left[i] = right[j] = SHARED if shown else None
    return left, right
