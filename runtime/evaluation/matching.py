"""Which detection found which object: matched once, for the curves, the confusion matrix and the worst images.

The rule is COCO's (Lin et al., 2014, as in pycocotools). By falling score, each detection takes the object of its class
that it overlaps most, if by an IoU of at least 0.5; an object is found once. A detection without an object that lies at
least half on a crowd region of its class, or of every class, is ignored. All detections take part: COCO's limit of the
100 best of a class in a picture belongs to AP and not to matching, and would distort thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.datasets.annotations import EVERY_CLASS, CocoDataset, ImageRecord
from runtime.detections import Detections

IOU = 0.5
INVENTED = -1
"""The detection has no object: a false positive."""
IGNORED = -2
"""The detection counts neither way."""


@dataclass(frozen=True, eq=False)
class ImageMatch:
    """The D detections of one image against its G objects."""

    record: ImageRecord
    detections: Detections
    overlaps: NDArray[np.float64]
    """[D, G] IoU, also between classes; for a crowd region the share of the detection that lies on it."""
    object_of: NDArray[np.int64]
    """[D] index of the object that the detection found, else `INVENTED` or `IGNORED`."""

    def standing(self, thresholds: NDArray[np.float64]) -> NDArray[np.bool_]:
        """[D] which detections reach the threshold of their class; thresholds [C].

        A threshold does not change matches: a detection below it never took an object from one above it.
        """
        return np.asarray(self.detections.scores >= thresholds.astype(np.float32)[self.detections.labels])


def match(detections: Mapping[int, Detections], dataset: CocoDataset) -> tuple[ImageMatch, ...]:
    """Every image that `detections` has, by rising image id."""
    records = sorted((record for record in dataset.records if record.id in detections), key=lambda record: record.id)
    return tuple(_match(record, detections[record.id]) for record in records)


def _match(record: ImageRecord, detections: Detections) -> ImageMatch:
    overlaps = pairwise_iou(detections.boxes_xyxy, record.boxes_xyxy, record.crowd)
    same = (detections.labels[:, None] == record.labels[None]) | (record.labels[None] == EVERY_CLASS)
    object_of = greedy(np.where(same, overlaps, 0.0), record.crowd)
    return ImageMatch(record, detections, overlaps, object_of)


def greedy(overlaps: NDArray[np.float64], crowd: NDArray[np.bool_], at: float = IOU) -> NDArray[np.int64]:
    """[D] index of the object each detection takes, or `INVENTED`, or `IGNORED` on a crowd region.

    overlaps [D, G], detections by falling score. crowd [G]: regions, which any number of detections may lie on. Among
    equal overlaps the last object is taken, as in pycocotools.
    """
    taken = np.full(len(overlaps), INVENTED, np.int64)
    free = ~crowd
    reach = overlaps >= at
    for d in np.flatnonzero(reach.any(axis=1)):
        candidates = np.flatnonzero(reach[d] & free)
        if len(candidates):
            best = candidates[len(candidates) - 1 - overlaps[d, candidates][::-1].argmax()]
            taken[d], free[best] = best, False
        elif reach[d, crowd].any():
            taken[d] = IGNORED
    return taken


def pairwise_iou(
    boxes_xyxy: NDArray[np.floating[Any]],
    objects_xyxy: NDArray[np.floating[Any]],
    crowd: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """IoU [D, G] of boxes [D, 4] and objects [G, 4]; for `crowd` [G], intersection over the area of the box.

    0 where both are empty.
    """
    a, b = boxes_xyxy.astype(np.float64)[:, None], objects_xyxy.astype(np.float64)[None]
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    intersection = sides[..., 0] * sides[..., 1]  # [D, G]
    box_areas, object_areas = ((c[..., 2:] - c[..., :2]).prod(axis=-1) for c in (a, b))
    union = box_areas + object_areas - intersection
    if crowd is not None:
        union = np.where(crowd[None], box_areas, union)
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
