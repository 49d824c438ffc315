"""Lines of `trainer check-data` on single boxes and pictures: faults, and what is probably a mistake."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence

from runtime.datasets.annotations import NO_FILE, CocoDataset, Problem
from runtime.images.picture_files import is_hidden, list_pictures

_EXAMPLES = 3


def problem_text(problem: Problem) -> str:
    """The image and annotation of a problem, and its detail."""
    if problem.image_id is None:
        return problem.detail
    annotation = "" if problem.annotation_id is None else f", annotation {problem.annotation_id}"
    return f"image {problem.image_id}{annotation}{': ' if problem.detail else ''}{problem.detail}"


def doubtful_boxes(dataset: CocoDataset) -> list[str]:
    """A line on boxes of one pixel, and one on boxes that a picture has twice; [] without such boxes."""
    pixels: list[str] = []
    twice: list[str] = []
    for record in dataset.records:
        sides = record.boxes_xyxy[:, 2:] - record.boxes_xyxy[:, :2]
        pixels += [record.path.name] * int(((sides <= 1).all(axis=1) & ~record.crowd).sum())
        rows = zip(record.boxes_xyxy.tolist(), record.labels.tolist(), record.crowd.tolist(), strict=True)
        counts = Counter((*box, label, crowd) for box, label, crowd in rows)
        twice += [record.path.name] * sum(count - 1 for count in counts.values())
    lines = []
    if pixels:
        lines.append(f"{len(pixels)} boxes of one pixel (trained on; a slip of the mouse?): {pictures(pixels)}")
    if twice:
        lines.append(f"{len(twice)} boxes are there twice, with the same class (trained on twice): {pictures(twice)}")
    return lines


def unnamed_pictures(datasets: Sequence[CocoDataset]) -> list[str]:
    """A line for each folder of a JSON file's pictures that has more pictures than the splits name."""
    named = {os.path.abspath(record.path) for dataset in datasets for record in dataset.records}
    named |= {os.path.abspath(p.detail) for dataset in datasets for p in dataset.problems.items if p.reason == NO_FILE}
    of_json = [dataset for dataset in datasets if dataset.annotations.suffix.lower() == ".json"]
    folders = sorted({record.path.parent for dataset in of_json for record in dataset.records})
    lines = []
    for folder in folders:
        files = sorted(path for path in folder.iterdir() if path.is_file() and not is_hidden(path.name))
        unnamed = [path.name for path in list_pictures(files).pictures if os.path.abspath(path) not in named]
        if unnamed:
            lines.append(f"{len(unnamed)} pictures in {folder} are neither in train nor in val: {pictures(unnamed)}")
    return lines


def pictures(names: Iterable[str]) -> str:
    """`examples` of picture names, each once."""
    return examples(list(dict.fromkeys(names)), " pictures")


def examples(rows: Sequence[str], kind: str = "") -> str:
    """The first three of `rows`, and how many more there are."""
    more = f"; and {len(rows) - _EXAMPLES} more{kind}" if len(rows) > _EXAMPLES else ""
    return "; ".join(rows[:_EXAMPLES]) + more
