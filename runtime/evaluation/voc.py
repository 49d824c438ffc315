"""Pascal VOC's protocol: AP at IoU 0.5, read at 11 recalls (2007) or as the area under the curve (2010 to 2012).

After the development kit of Everingham et al. ("The PASCAL Visual Object Classes Challenge", 2010, and VOCevaldet.m):
detections of a class are taken by falling score; each goes to the object that it overlaps most, whether or not that
is already found. It is a false positive if it overlaps that object by less than 0.5, or comes second to it. Objects
marked difficult are neither to be found nor held against a detection; here they are the ones with `crowd` set.

VOC counts pixels, so its widths are x2 - x1 + 1. Boxes here are edges, [x1, x2) with x2 - x1 the same width, as long as
the reader of a VOC file takes 1 from xmin and ymin; then the overlaps are VOC's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from runtime.datasets.annotations import EVERY_CLASS, CocoDataset, ImageRecord
from runtime.detections import Detections
from runtime.evaluation.curves import curves
from runtime.evaluation.matching import IGNORED, INVENTED, IOU, ImageMatch, pairwise_iou

Year = Literal["voc07", "voc12"]


def voc_ap(detections: Mapping[int, Detections], dataset: CocoDataset, year: Year) -> dict[str, float]:
    """AP of each class in points, 0..100, over the images that `detections` has; NaN where a class has no object."""
    average = ap11 if year == "voc07" else area
    matches = [_match(record, detections[record.id]) for record in dataset.records if record.id in detections]
    return {
        curve.name: 100 * average(np.cumsum(curve.hits), curve.objects) if curve.objects else math.nan
        for curve in curves(matches, dataset.class_names)
    }


def ap11(hits: NDArray[np.int64], objects: int) -> float:
    """Mean over the recalls 0, 0.1, .. 1 of the best precision at that recall or a higher one.

    hits [n]: objects found by the best 1..n detections, of `objects`. Recalls are compared as whole numbers:
    3 of 10 is a recall of 0.3, which in floating point it need not be.
    """
    precision = hits / np.arange(1, len(hits) + 1)
    best = [precision[10 * hits >= tenth * objects].max(initial=0.0) for tenth in range(11)]
    return float(np.mean(best))


def area(hits: NDArray[np.int64], objects: int) -> float:
    """The area under the curve of precision made monotonic; arguments as in `ap11`."""
    precision = hits / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((envelope * np.diff(hits, prepend=0)).sum() / objects)


def _match(record: ImageRecord, detections: Detections) -> ImageMatch:
    """The match of one image by VOC's rule: only the object that a detection overlaps most counts for it."""
    overlaps = pairwise_iou(detections.boxes_xyxy, record.boxes_xyxy)
    same_class = (detections.labels[:, None] == record.labels) | (record.labels == EVERY_CLASS)
    of_class = np.where(same_class, overlaps, 0.0)
    object_of = np.full(len(detections), INVENTED, np.int64)
    taken: set[int] = set()
    for d in np.flatnonzero(of_class.max(axis=1, initial=0.0) >= IOU).tolist():
        best = int(of_class[d].argmax())
        if record.crowd[best]:
            object_of[d] = IGNORED
        elif best not in taken:
            object_of[d] = best
            taken.add(best)
    return ImageMatch(record, detections, overlaps, object_of)
