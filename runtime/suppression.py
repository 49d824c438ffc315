"""Greedy NMS in NumPy, for graphs without NMS. Exact, with the same result as NMS in the graph."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isodet.shapes import assert_shape
from runtime.backends.protocol import RawOutputs


def suppress(candidates: RawOutputs, iou_threshold: float, detections: int) -> RawOutputs:
    """The detections among `candidates` (their `num_dets` is None): at most `detections` of each image, by class.

    Best first, a candidate is kept unless a kept one of its class overlaps it by more than `iou_threshold`.
    Overlaps are float32 and compared with the largest float32 that is not above the threshold, as in the graph
    (`models.deploy.nms`), so that both keep the same boxes.
    """
    assert_shape("scores", candidates.scores, None, None)
    assert_shape("boxes", candidates.boxes, *candidates.scores.shape, 4)
    assert_shape("labels", candidates.labels, *candidates.scores.shape)
    batch, most = len(candidates.scores), min(detections, candidates.scores.shape[1])
    count = np.zeros((batch, 1), np.int32)
    boxes, scores = np.zeros((batch, most, 4), np.float32), np.zeros((batch, most), np.float32)
    labels = np.zeros((batch, most), np.int32)
    for i in range(batch):
        real = np.flatnonzero(candidates.scores[i] > 0)
        real = real[np.argsort(-candidates.scores[i][real], kind="stable")]
        index = real[_kept(candidates.boxes[i][real], candidates.labels[i][real], iou_threshold, most)]
        n = count[i, 0] = len(index)
        boxes[i, :n], scores[i, :n] = candidates.boxes[i][index], candidates.scores[i][index]
        labels[i, :n] = candidates.labels[i][index]
    return RawOutputs(count, boxes, scores, labels)


def _kept(boxes: NDArray[np.float32], labels: NDArray[np.int32], iou_threshold: float, most: int) -> NDArray[np.intp]:
    """Indices of the first `most` of boxes [K, 4], labels [K], best first, that are kept."""
    limit = np.float32(iou_threshold)
    if float(limit) > iou_threshold:
        limit = np.nextafter(limit, np.float32(-np.inf))
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    areas = sides[:, 0] * sides[:, 1]
    free = np.ones(len(boxes), bool)
    kept: list[int] = []
    for i in range(len(boxes)):
        if not free[i]:
            continue
        kept.append(i)
        if len(kept) == most:
            break
        rest = slice(i + 1, None)
        width = np.maximum(np.minimum(boxes[rest, 2], boxes[i, 2]) - np.maximum(boxes[rest, 0], boxes[i, 0]), 0)
        height = np.maximum(np.minimum(boxes[rest, 3], boxes[i, 3]) - np.maximum(boxes[rest, 1], boxes[i, 1]), 0)
        overlap = width * height
        with np.errstate(invalid="ignore"):  # 0 / 0: two boxes without area, which suppress nothing
            iou = overlap / (areas[i] + areas[rest] - overlap)
        free[rest] &= ~((iou > limit) & (labels[rest] == labels[i]))
    return np.array(kept, np.intp)
