"""Pascal VOC's protocol: AP at IoU 0.5, read at 11 recalls (2007) or as the area under the curve (2010 to 2012).

After the development kit of Everingham et al. ("The PASCAL Visual Object Classes Challenge", 2010, and VOCevaldet.m):
detections of a class are taken by falling score; each goes to the object that it overlaps most, found already or
not. Overlapping that by less than 0.5, or coming second to it, is a false positive. Objects marked difficult are
neither to be found nor held against a detection; here they are the ones with `crowd` set.

VOC counts pixels, so its widths are x2 - x1 + 1. Boxes here are edges, [x1, x2) with x2 - x1 the same width, as long as
the reader of a VOC file takes 1 from xmin and ymin; then the overlaps are VOC's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from runtime.datasets.annotations import EVERY_CLASS, CocoDataset
from runtime.detections import Detections
from runtime.evaluation.matching import IOU, pairwise_iou

Year = Literal["voc07", "voc12"]


def voc_ap(found: Mapping[int, Detections], dataset: CocoDataset, year: Year) -> dict[str, float]:
    """AP of each class in points, 0..100, over the images that `found` has; NaN where a class has no object."""
    objects = np.zeros(len(dataset.class_names), np.int64)
    labels: list[NDArray[np.int32]] = [np.zeros(0, np.int32)]
    scores: list[NDArray[np.float32]] = [np.zeros(0, np.float32)]
    hits: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    for record in dataset.records:
        if record.id not in found:
            continue
        detections = found[record.id]
        objects += np.bincount(record.labels[~record.crowd], minlength=len(objects))
        overlaps = pairwise_iou(detections.boxes_xyxy, record.boxes_xyxy)
        same = (detections.labels[:, None] == record.labels) | (record.labels == EVERY_CLASS)
        outcome = _outcomes(np.where(same, overlaps, 0.0), record.crowd)
        judged = outcome >= 0
        labels.append(detections.labels[judged])
        scores.append(detections.scores[judged])
        hits.append(outcome[judged])
    all_labels, all_scores, all_hits = (np.concatenate(parts) for parts in (labels, scores, hits))
    result = {}
    for label, name in enumerate(dataset.class_names):
        mine = all_labels == label
        order = np.argsort(-all_scores[mine], kind="stable")
        found_so_far = np.cumsum(all_hits[mine][order])
        average = ap11 if year == "voc07" else area
        result[name] = 100 * average(found_so_far, int(objects[label])) if objects[label] else math.nan
    return result


def ap11(found: NDArray[np.int64], objects: int) -> float:
    """Mean over the recalls 0, 0.1, .. 1 of the best precision at that recall or a higher one.

    found [n]: objects found by the best 1..n detections, of `objects`. Recalls are compared as whole numbers:
    3 of 10 is a recall of 0.3, which in floating point it need not be.
    """
    precision = found / np.arange(1, len(found) + 1)
    best = [precision[10 * found >= tenth * objects].max(initial=0.0) for tenth in range(11)]
    return float(np.mean(best))


def area(found: NDArray[np.int64], objects: int) -> float:
    """The area under the curve of precision made monotonic; arguments as in `ap11`."""
    precision = found / np.arange(1, len(found) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((envelope * np.diff(found, prepend=0)).sum() / objects)


def _outcomes(overlaps: NDArray[np.float64], difficult: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[D] 1 found, 0 false, -1 ignored; overlaps [D, G], 0 between classes, detections by falling score."""
    outcome = np.zeros(len(overlaps), np.int64)
    if not overlaps.shape[1]:
        return outcome
    best = overlaps.argmax(axis=1)
    taken: set[int] = set()
    for d in np.flatnonzero(overlaps.max(axis=1) >= IOU).tolist():
        wanted = int(best[d])
        if difficult[wanted]:
            outcome[d] = -1
        elif wanted not in taken:
            outcome[d] = 1
            taken.add(wanted)
    return outcome
