"""Hard negatives: false positives of a trained detector, mined and read again.

The file is JSON: {"isodet": "hard negatives", "format": 1, "images": FOLDER, "classes": [...], "negatives": [...]},
each negative {image_id, file_name, bbox [x, y, w, h], score, class}. FOLDER is relative to the file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isodet.errors import IsodetError
from isodet.strict import ConfigError
from runtime.card.card import Card
from runtime.datasets import FORMATS, read_dataset, read_split
from runtime.datasets.annotations import CocoDataset
from runtime.datasets.orientation import oriented
from runtime.detector import Detector
from runtime.files.write import write_text
from runtime.images.image import ImageError, read_image

KIND, FORMAT = "hard negatives", 1
_LEAST_SIDE = 4.0
"""Pixels; there is nothing to see in less."""


class MiningError(IsodetError, ValueError):
    """Mining is not possible, or found nothing; the message says what to do."""


@dataclass(frozen=True)
class Negative:
    """One false positive."""

    path: Path
    box_xyxy: tuple[float, float, float, float]
    """Pixels of that picture."""
    score: float
    name: str
    """The class that the detector took it for."""


@dataclass(frozen=True)
class Mined:
    images: int
    """Pictures, also those that could not be read."""
    detections: int
    """Detections from the lowest score on, false and true ones."""
    found: int
    """False positives."""
    written: int
    """Those with the highest scores."""
    skipped: tuple[tuple[Path, str], ...]
    """Pictures that could not be read, and why."""


def mine_negatives(
    detector: Detector,
    dataset: CocoDataset,
    out: str | PathLike[str],
    score: float = 0.3,
    max_overlap: float = 0.1,
    limit: int = 1000,
    progress: Callable[[int, int], None] | None = None,
) -> Mined:
    """Write to `out` the up to `limit` highest-scored detections that overlap no object by `max_overlap`.

    Overlap is the common area of two boxes over the smaller of them, or over the detection where the object is a crowd.
    It is never less than the IoU, which misses that a part of a large object, and a small object within a large
    detection, are not background. The detector's classes must be the dataset's. Raises `MiningError` where nothing is
    found or no picture can be read.
    """
    limits = {"score": (score, 0, 1), "max_overlap": (max_overlap, 0, 1), "limit": (limit, 1, 10**6)}
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise MiningError.of(name, f"expected {low} to {high}, got {value}")
    if Path(out).resolve() in {path.resolve() for path in (*dataset.files, dataset.annotations)}:
        raise MiningError.at(out, "these are the annotations; expected another name for the negatives")
    rows: list[dict[str, Any]] = []
    skipped, detections = [], 0
    for done, record in enumerate(dataset.records, start=1):
        try:
            image = read_image(record.path)
            record = oriented(record, (image.shape[0], image.shape[1]))
            boxes = detector(image, threshold=score)[0]
        except ImageError as error:
            skipped.append((record.path, error.reason))
        else:
            detections += len(boxes)
            for row in np.flatnonzero(_on_no_object(boxes.boxes_xyxy, record.boxes_xyxy, record.crowd, max_overlap)):
                x1, y1, x2, y2 = boxes.boxes_xyxy[row].tolist()
                rows.append(
                    {
                        "image_id": record.id,
                        "file_name": Path(os.path.relpath(record.path, dataset.images_dir)).as_posix(),
                        "bbox": [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)],
                        "score": round(float(boxes.scores[row]), 4),
                        "class": boxes.names[row],
                    }
                )
        if progress is not None:
            progress(done, len(dataset.records))
    if len(skipped) == len(dataset.records):
        raise MiningError.at(
            dataset.annotations,
            f"none of its {len(skipped)} pictures can be read; the first: {skipped[0][0]}: {skipped[0][1]}",
        )
    if not rows:
        raise MiningError(
            f"no false positive among {detections} detections at a score of {score:g} and more in "
            f"{len(dataset.records)} images; lower --score, or look in other images"
        )
    rows.sort(key=lambda row: -row["score"])
    folder = Path(os.path.relpath(dataset.images_dir.resolve(), Path(out).resolve().parent)).as_posix()
    content = {"isodet": KIND, "format": FORMAT, "images": folder, "classes": list(detector.class_names),
               "negatives": rows[:limit]}  # fmt: skip
    write_text(out, json.dumps(content, indent=1))
    return Mined(len(dataset.records), detections, len(rows), min(limit, len(rows)), tuple(skipped))


def training_data(
    card: Card,
    source: str | PathLike[str],
    annotations: str | PathLike[str] | None = None,
    images: str | PathLike[str] | None = None,
) -> CocoDataset:
    """The data to mine in: `annotations`, in any format; without them the training data, by the model's `card`.

    Raises `MiningError` where there is neither, or the training had several data sets, `DatasetError` where the data
    cannot be read.
    """
    if annotations is not None:
        return read_dataset(annotations, images, card.classes)
    if images is not None:
        raise MiningError("a folder of images alone is not enough: give --annotations, too")
    split = card.training.get("data", {}).get("train", {})
    kind: Any = split.get("format", "auto") if isinstance(split, dict) else ""
    if kind not in ("auto", *FORMATS) or not split.get("annotations"):
        raise MiningError.at(source, "its card names no single set of training data; give --annotations (--images)")
    return read_split(split, card.classes, "train")


def _on_no_object(
    boxes: NDArray[np.float32], truth: NDArray[np.float32], crowd: NDArray[np.bool_], max_overlap: float
) -> NDArray[np.bool_]:
    """[D] which of `boxes` [D,4] overlap each of `truth` [G,4] by less than `max_overlap`, and can be seen."""
    sides = boxes[:, 2:] - boxes[:, :2]
    seen = sides.min(1, initial=np.inf) >= _LEAST_SIDE
    if not len(truth):
        return seen
    common = np.minimum(boxes[:, None, 2:], truth[None, :, 2:]) - np.maximum(boxes[:, None, :2], truth[None, :, :2])
    common = np.maximum(common, 0).astype(np.float64).prod(2)  # [D,G]
    areas = sides.astype(np.float64).prod(1)[:, None]
    true_areas = (truth[:, 2:] - truth[:, :2]).astype(np.float64).prod(1)[None]
    smaller = np.where(crowd[None], areas, np.minimum(areas, true_areas))
    return seen & (common / np.maximum(smaller, 1e-12) < max_overlap).all(1)


def read_negatives(path: str | PathLike[str]) -> Sequence[Negative]:
    """The negatives of a file that `mine_negatives` wrote, pictures checked to be there. Raises `ConfigError`."""
    path = Path(path)
    wanted = "expected a file that `trainer mine-negatives` wrote"

    def refusal(reason: str) -> ConfigError:
        return ConfigError(f"augment.hard_negatives.file: {path}: {reason}")

    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise refusal(f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise refusal(f"{wanted}, not valid JSON ({error})") from None
    if not isinstance(content, dict) or content.get("isodet") != KIND or not isinstance(content.get("negatives"), list):
        raise refusal(wanted)
    if (number := content.get("format")) != FORMAT:
        raise refusal(f"its format is {number!r}, this isodet reads {FORMAT}; mine again, or update isodet")
    folder = path.parent / str(content.get("images", "."))
    negatives = []
    for i, entry in enumerate(content["negatives"]):
        try:
            x, y, w, h = (float(v) for v in entry["bbox"])
            picture, score, name = folder / entry["file_name"], float(entry["score"]), entry["class"]
        except (KeyError, TypeError, ValueError) as error:
            raise refusal(f"negatives[{i}]: {wanted} ({error})") from None
        if not all(math.isfinite(v) for v in (x, y, w, h)) or w <= 0 or h <= 0 or x + w <= 0 or y + h <= 0:
            raise refusal(f"negatives[{i}].bbox: expected [x, y, w, h] within the picture, got {entry['bbox']}")
        negatives.append(Negative(picture, (x, y, x + w, y + h), score, name))
    if not negatives:
        raise refusal(f"it holds no negatives; {wanted}")
    missing = sorted({negative.path for negative in negatives if not negative.path.is_file()})
    if missing:
        raise refusal(
            f"{len(missing)} of its pictures are missing, the first: {missing[0]}; mine again, or put its images back "
            "beside it"
        )
    return tuple(negatives)
