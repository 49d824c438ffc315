"""The confusion matrix of a detector: the class reported for each object, and reports without an object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.evaluation.matching import INVENTED, ImageMatch, greedy

BACKGROUND = "background"


@dataclass(frozen=True, eq=False)
class Confusion:
    """Counts [C + 1, C + 1]: rows are true classes, columns reported ones; the last of each is background."""

    names: tuple[str, ...]
    """[C]"""
    counts: NDArray[np.int64]

    def pairs(self, count: int = 10) -> list[tuple[str, str, int]]:
        """(true class, reported class, times) of the most frequent confusions between classes, the first most."""
        between = self.counts[:-1, :-1].copy()
        np.fill_diagonal(between, 0)
        order = np.argsort(-between, axis=None, kind="stable")[:count]
        rows, columns = np.unravel_index(order, between.shape)
        return [
            (self.names[r], self.names[c], int(between[r, c]))
            for r, c in zip(rows.tolist(), columns.tolist(), strict=True)
            if between[r, c]
        ]


def confusion(matches: Sequence[ImageMatch], class_names: Sequence[str], thresholds: NDArray[np.float64]) -> Confusion:
    """The matrix at IoU 0.5 of the detections that reach the threshold of their class; thresholds [C].

    There are two rounds for each image. The first has the matches within classes, as in the curves: the diagonal is
    the number of objects that are found. The second takes the remaining detections of all classes, by falling score:
    each takes the remaining object that it overlaps most, if by at least 0.5, and counts beside the diagonal. Then
    remaining objects count in the column of the background, and remaining detections in its row, such as a second box
    on an object. A detection on a crowd region of its class counts nowhere.
    """
    size = len(class_names)
    counts = np.zeros((size + 1, size + 1), np.int64)
    for m in matches:
        standing = m.standing(thresholds)
        hits = standing & (m.object_of >= 0)
        np.add.at(counts, (m.detections.labels[hits], m.detections.labels[hits]), 1)
        left = np.flatnonzero(standing & (m.object_of == INVENTED))
        missed = ~m.record.crowd
        missed[m.object_of[hits]] = False
        objects = np.flatnonzero(missed)
        taken = greedy(m.overlaps[np.ix_(left, objects)], np.zeros(len(objects), np.bool_))
        truth = np.full(len(left), size)
        truth[taken >= 0] = m.record.labels[objects[taken[taken >= 0]]]
        np.add.at(counts, (truth, m.detections.labels[left]), 1)
        unseen = np.delete(objects, taken[taken >= 0])
        counts[:size, size] += np.bincount(m.record.labels[unseen], minlength=size)
    return Confusion(tuple(class_names), counts)
