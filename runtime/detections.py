"""The result of a detector for one frame."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from isodet.errors import ArgumentError


@dataclass(frozen=True)
class Detection:
    """One found object: box in frame pixels, score 0..1, label and its name."""

    box_xyxy: tuple[float, float, float, float]
    score: float
    label: int
    name: str


@dataclass(frozen=True, eq=False)
class Detections:
    """The D objects found in one frame, by falling score. Its constructor raises ValueError for other arrays.

    >>> found = Detector("best.onnx", threshold=0.1)("street.png")[0]
    >>> len(found), found.names
    (2, ['car', 'car'])
    >>> for one in found.filter(0.5, classes=["car"]):
    ...     print(one.name, round(one.score, 2), one.box_xyxy)
    car 0.98 (0.0, 0.0, 30.0, 30.0)
    >>> large = found[found.boxes_xyxy[:, 2] - found.boxes_xyxy[:, 0] > 20]  # a boolean mask, a slice, rising indices
    >>> large.to_json()
    [{'box_xyxy': [0.0, 0.0, 30.0, 30.0], 'score': 0.9804, 'label': 1, 'name': 'car'}]

    boxes_xyxy: float32 [D, 4], pixels of the frame that was given.
    scores: float32 [D], 0..1, descending.
    labels: int32 [D], 0..C-1.
    class_names: [C].
    """

    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int32]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(self.class_names))
        count = len(self.scores) if isinstance(self.scores, np.ndarray) and self.scores.ndim == 1 else -1
        shapes = {"scores": (count,), "boxes_xyxy": (count, 4), "labels": (count,)}
        for name, shape in shapes.items():
            dtype = np.int32 if name == "labels" else np.float32
            value = getattr(self, name)
            if not isinstance(value, np.ndarray) or value.dtype != dtype or value.shape != shape:
                got = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
                wanted = str(list(shape)).replace("-1", "D")
                raise ArgumentError.of(
                    f"Detections.{name}", f"expected a NumPy array {np.dtype(dtype)} {wanted}, got {got}"
                )
        if not count:
            return
        # The checks of every call in few operations of NumPy: after a network's run each is out of the caches.
        boxes, scores, labels = self.boxes_xyxy, self.scores, self.labels
        if not np.isfinite(boxes).all():
            raise self._bad_value("boxes_xyxy", "finite pixels", ~np.isfinite(boxes))
        if not (boxes[:, 2:] >= boxes[:, :2]).all():
            raise self._bad_value("boxes_xyxy", "x1 <= x2 and y1 <= y2", (boxes[:, 2:] < boxes[:, :2]).any(1))
        if not (scores[0] <= 1 and scores[-1] >= 0 and (scores[1:] <= scores[:-1]).all()):
            outside = ~((scores >= 0) & (scores <= 1))
            if outside.any():
                raise self._bad_value("scores", "0 to 1", outside)
            raise ArgumentError.of(
                "Detections.scores", "expected descending scores; sort boxes, scores and labels first"
            )
        # As unsigned numbers those below zero are the largest.
        if not (labels.view(np.uint32) < len(self.class_names)).all():
            last = len(self.class_names) - 1
            raise self._bad_value("labels", f"0 to {last}", (labels < 0) | (labels > last))

    def _bad_value(self, name: str, expected: str, bad: Any) -> ArgumentError:
        """The error of an array, which shows the first row in which an element is `bad`."""
        row = int(np.argwhere(bad)[0][0])
        got = f"{getattr(self, name)[row].tolist()} (row {row})"
        return ArgumentError.of(f"Detections.{name}", f"expected {expected}, got {got}")

    @classmethod
    def empty(cls, class_names: Sequence[str]) -> Detections:
        """Nothing found."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32), tuple(class_names))

    @classmethod
    def merge(cls, parts: Sequence[Detections]) -> Detections:
        """The detections of several parts of one frame, such as tiles or regions, by falling score.

        Nothing is suppressed: an object that two parts show is there twice. Among equal scores, detections of the
        earlier part come first. Raises ValueError for no parts, or parts of different classes.
        """
        if not parts:
            raise ArgumentError.of(
                "parts", "expected at least one Detections to merge; nothing found is Detections.empty(class_names)"
            )
        names = parts[0].class_names
        for part in parts[1:]:
            if part.class_names != names:
                raise ArgumentError.of(
                    "parts", f"expected detections of the same classes, got {names} and {part.class_names}"
                )
        scores = np.concatenate([part.scores for part in parts])
        order = np.argsort(-scores, kind="stable")
        boxes = np.concatenate([part.boxes_xyxy for part in parts])
        return cls(boxes[order], scores[order], np.concatenate([part.labels for part in parts])[order], names)

    @property
    def names(self) -> list[str]:
        """[D] class names."""
        return [self.class_names[label] for label in self.labels]

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        for box, score, label in zip(self.boxes_xyxy.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True):
            yield Detection(tuple(box), score, label, self.class_names[label])

    @overload
    def __getitem__(self, index: int) -> Detection: ...
    @overload
    def __getitem__(self, index: slice | NDArray[Any] | Sequence[bool]) -> Detections: ...
    def __getitem__(self, index: int | slice | NDArray[Any] | Sequence[bool]) -> Detection | Detections:
        """One `Detection` by number; `Detections` by boolean mask [D], slice or rising indices."""
        if isinstance(index, (int, np.integer)) and not isinstance(index, bool):
            label = int(self.labels[index])
            x1, y1, x2, y2 = self.boxes_xyxy[index].tolist()
            return Detection((x1, y1, x2, y2), float(self.scores[index]), label, self.class_names[label])
        if not isinstance(index, slice):
            index = np.asarray(index)
            if index.size == 0 and index.dtype != np.bool_:
                index = index.astype(np.intp)
        return Detections(self.boxes_xyxy[index], self.scores[index], self.labels[index], self.class_names)

    def filter(
        self,
        threshold: float | Mapping[str, float] | None = None,
        classes: Collection[str | int] | None = None,
    ) -> Detections:
        """The detections with a score of at least `threshold`, of the `classes` given by name or label.

        `threshold` may be a score for each class by name; a class that it does not name keeps all detections. Raises
        ValueError for a class that the detector does not know.
        """
        keep = np.ones(len(self), np.bool_)
        if isinstance(threshold, Mapping):
            limits = np.zeros(len(self.class_names), np.float32)
            for name, limit in threshold.items():
                limits[self._label(name)] = limit
            keep &= self.scores >= limits[self.labels]
        elif threshold is not None:
            keep &= self.scores >= np.float32(threshold)
        if classes is not None:
            if isinstance(classes, str):
                raise ArgumentError.of("classes", f"expected a list of names or labels, got the text {classes!r}")
            keep &= np.isin(self.labels, [self._label(c) for c in classes])
        return self[keep]

    def _label(self, name_or_label: str | int) -> int:
        if isinstance(name_or_label, str):
            if name_or_label in self.class_names:
                return self.class_names.index(name_or_label)
        elif 0 <= name_or_label < len(self.class_names):
            return int(name_or_label)
        raise ArgumentError.of("classes", f"unknown class {name_or_label!r}; known: {', '.join(self.class_names)}")

    def to_json(self) -> list[dict[str, Any]]:
        """One JSON-ready object for each detection: box_xyxy (2 decimals), score (4 decimals), label, name."""
        return [
            {
                "box_xyxy": [round(v, 2) for v in d.box_xyxy],
                "score": round(d.score, 4),
                "label": d.label,
                "name": d.name,
            }
            for d in self
        ]

    def to_supervision(self) -> Any:
        """A `supervision.Detections` of these: xyxy, confidence, class_id, and the names under data["class_name"].

        Raises ImportError with advice where supervision is not installed.
        """
        try:
            supervision = importlib.import_module("supervision")
        except ImportError as error:
            raise ImportError(f"to_supervision needs supervision: pip install 'isodet[track]' ({error})") from error
        return supervision.Detections(
            xyxy=self.boxes_xyxy.copy(),
            confidence=self.scores.copy(),
            class_id=self.labels.astype(int),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def to_coco(self, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """COCO result objects: image_id, category_id (`category_ids[label]`), bbox [x, y, w, h], score."""
        return [
            {
                "image_id": image_id,
                "category_id": int(category_ids[d.label]),
                "bbox": [d.box_xyxy[0], d.box_xyxy[1], d.box_xyxy[2] - d.box_xyxy[0], d.box_xyxy[3] - d.box_xyxy[1]],
                "score": d.score,
            }
            for d in self
        ]
