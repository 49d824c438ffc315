"""Greedy NMS in NumPy, for graphs without NMS. Exact, with the same result as NMS in the graph."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isodet.shapes import assert_shape
from runtime.backends.protocol import RawOutputs

_BLOCK = 128
"""Candidates compared with each other at once: a table of their overlaps stays in a cache."""


def suppress(candidates: RawOutputs, iou_threshold: float, detections: int, lowest: float = 0.0) -> RawOutputs:
    """The detections among `candidates` (their `num_dets` is None): at most `detections` of each image, by class.

    Best first, a candidate is kept unless a kept one of its class overlaps it by more than `iou_threshold`.
    Overlaps are float32 and compared with the largest float32 that is not above the threshold, as in the graph
    (`models.deploy.nms`), so that both keep the same boxes. Candidates below the score `lowest` are left out first,
    which is faster and changes no other detection: no candidate suppresses a better one.
    """
    assert_shape("scores", candidates.scores, None, None)
    assert_shape("boxes", candidates.boxes, *candidates.scores.shape, 4)
    assert_shape("labels", candidates.labels, *candidates.scores.shape)
    batch, most = len(candidates.scores), min(detections, candidates.scores.shape[1])
    count = np.zeros((batch, 1), np.int32)
    boxes, scores = np.zeros((batch, most, 4), np.float32), np.zeros((batch, most), np.float32)
    labels = np.zeros((batch, most), np.int32)
    for i in range(batch):
        real = np.flatnonzero((candidates.scores[i] > 0) & (candidates.scores[i] >= np.float32(lowest)))
        real = real[np.argsort(-candidates.scores[i][real], kind="stable")]
        index = real[_kept(candidates.boxes[i][real], candidates.labels[i][real], iou_threshold, most)]
        n = count[i, 0] = len(index)
        boxes[i, :n], scores[i, :n] = candidates.boxes[i][index], candidates.scores[i][index]
        labels[i, :n] = candidates.labels[i][index]
    return RawOutputs(count, boxes, scores, labels)


def _kept(boxes: NDArray[np.float32], labels: NDArray[np.int32], iou_threshold: float, most: int) -> NDArray[np.intp]:
    """Indices of the first `most` of boxes [K, 4], labels [K], best first, that are kept.

    Block by block: what a kept one of an earlier block suppresses leaves, then the block is iterated until nothing
    changes, as `models.deploy.nms.keep_until_stable` does, so as often as its longest chain of suppressors is long.
    """
    limit = np.float32(iou_threshold)
    if float(limit) > iou_threshold:
        limit = np.nextafter(limit, np.float32(-np.inf))
    kept = np.empty(0, np.intp)
    for start in range(0, len(boxes), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(boxes)))
        if len(kept):
            block = block[~_suppresses(boxes, labels, kept, block, limit).any(axis=0)]
        suppresses = np.triu(_suppresses(boxes, labels, block, block, limit), 1)
        stays, changes = np.ones(len(block), np.bool_), True
        while changes:
            before, stays = stays, np.logical_not(suppresses[stays].any(axis=0))
            changes = not np.array_equal(stays, before)
        kept = np.concatenate([kept, block[stays]])[:most]
        if len(kept) == most:
            break
    return kept


def _suppresses(
    boxes: NDArray[np.float32], labels: NDArray[np.int32], rows: NDArray[np.intp], columns: NDArray[np.intp],
    limit: np.float32,
) -> NDArray[np.bool_]:  # fmt: skip
    """[rows, columns]: where two boxes of one class overlap by more than `limit`."""
    x1, y1, x2, y2 = boxes.T
    with np.errstate(invalid="ignore"):  # 0 / 0: two boxes without area, which suppress nothing
        width = np.minimum(x2[rows, None], x2[columns]) - np.maximum(x1[rows, None], x1[columns])
        height = np.minimum(y2[rows, None], y2[columns]) - np.maximum(y1[rows, None], y1[columns])
        overlap = np.maximum(width, 0) * height  # a negative one is below every threshold
        area = np.maximum(x2 - x1, 0) * np.maximum(y2 - y1, 0)
        iou = overlap / (area[rows, None] + area[columns] - overlap)
    result: NDArray[np.bool_] = (iou > limit) & (labels[rows, None] == labels[columns])
    return result
