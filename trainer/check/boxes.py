"""Findings of `trainer check-data` on single boxes, entries and files of the annotations."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from runtime.datasets.annotations import (
    ABSENT_CLASS,
    BAD_FLAG,
    BAD_ROTATION,
    BORROWED,
    BROKEN_ENTRY,
    CLIPPED,
    FROM_0,
    HEIC,
    KEY_POINTS,
    LEFT_OUT,
    NO_ANNOTATION,
    NO_AREA,
    NO_BBOX,
    NO_CLASS,
    NO_FILE,
    NO_PICTURE,
    NO_SIZE,
    NOT_FINITE,
    NOT_LISTED,
    OTHER_CLASS,
    OUTSIDE,
    TURNED,
    UNKNOWN_CATEGORY,
    UNKNOWN_IMAGE,
    CocoDataset,
    Problem,
    reason_text,
)
from runtime.images.picture_files import is_hidden, list_pictures
from trainer.check.findings import Finding, Where, counted, finding

_KINDS = {
    NO_FILE: "annotations-without-picture",
    NO_PICTURE: "annotations-without-picture",
    UNKNOWN_IMAGE: "annotations-without-picture",
    NOT_LISTED: "annotations-without-picture",
    BROKEN_ENTRY: "broken-annotations",
    NO_SIZE: "broken-pictures",
    NO_ANNOTATION: "pictures-without-annotation",
    LEFT_OUT: "unread-files",
    HEIC: "unread-files",
    NOT_FINITE: "unusable-boxes",
    NO_AREA: "unusable-boxes",
    OUTSIDE: "unusable-boxes",
    NO_BBOX: "unusable-boxes",
    KEY_POINTS: "unusable-boxes",
    CLIPPED: "clipped-boxes",
    UNKNOWN_CATEGORY: "unknown-classes",
    NO_CLASS: "unknown-classes",
    BAD_FLAG: "doubtful-flags",
    BAD_ROTATION: "doubtful-rotations",
    FROM_0: "doubtful-origin",
    BORROWED: "borrowed-pictures",
    TURNED: "rotated-boxes",
    OTHER_CLASS: "other-classes",
}
"""The finding of each reason for which a reader leaves something out. A split's classes without an object are a finding
of their own, which names them all."""


def problem_findings(split: Where, dataset: CocoDataset, elsewhere: Collection[str]) -> list[Finding]:
    """A finding for each kind of problem that reading the annotations met.

    `elsewhere` has the absolute paths of the pictures of the other split: those are not without an annotation.
    """
    findings = []
    for reason in dataset.problems.counts:
        items = [item for item in dataset.problems.items if item.reason == reason]
        if reason == NO_ANNOTATION:
            items = [item for item in items if os.path.abspath(item.detail) not in elsewhere]
        if items and reason != ABSENT_CLASS:
            shown = [problem_text(item) for item in items]
            id = _KINDS.get(reason, "other-problems")
            text = reason_text(len(items), reason)
            findings.append(finding(id, split, len(items), text, map(_place, items), shown))
    return findings


def problem_text(problem: Problem) -> str:
    """The image and annotation of a problem, and its detail."""
    if problem.image_id is None:
        return problem.detail
    annotation = "" if problem.annotation_id is None else f", annotation {problem.annotation_id}"
    return f"image {problem.image_id}{annotation}{': ' if problem.detail else ''}{problem.detail}"


def _place(problem: Problem) -> str:
    """The path of a problem with a whole file, or the ids of its image and annotation."""
    if problem.image_id is None or (problem.annotation_id is None and problem.detail):
        return problem.detail
    return problem_text(Problem(problem.reason, problem.image_id, problem.annotation_id))


def doubtful_boxes(split: Where, dataset: CocoDataset) -> list[Finding]:
    """A finding on boxes of one pixel, and one on boxes that a picture has twice; [] without such boxes."""
    pixels: list[Path] = []
    twice: list[Path] = []
    for record in dataset.records:
        sides = record.boxes_xyxy[:, 2:] - record.boxes_xyxy[:, :2]
        pixels += [record.path] * int(((sides <= 1).all(axis=1) & ~record.crowd).sum())
        rows = zip(record.boxes_xyxy.tolist(), record.labels.tolist(), record.crowd.tolist(), strict=True)
        counts = Counter((*box, label, crowd) for box, label, crowd in rows)
        twice += [record.path] * sum(count - 1 for count in counts.values())
    return [
        finding(
            id, split, len(paths), f"{counted(len(paths), one, many)} {text}", map(str, paths),
            [path.name for path in paths],
        )
        for id, one, many, text, paths in (
            ("boxes-of-one-pixel", "box", "boxes", "of one pixel (trained on; a slip of the mouse?)", pixels),
            ("boxes-twice", "box is", "boxes are", "there twice, with the same class (trained on twice)", twice),
        )
        if paths
    ]  # fmt: skip


def unnamed_pictures(datasets: Sequence[CocoDataset], known: Collection[str]) -> list[Finding]:
    """A finding for each folder of a JSON file's pictures that has more pictures than the splits name.

    `known` has the absolute paths of pictures that another finding is about.
    """
    named = {os.path.abspath(record.path) for dataset in datasets for record in dataset.records} | set(known)
    named |= {os.path.abspath(p.detail) for dataset in datasets for p in dataset.problems.items if p.reason == NO_FILE}
    of_json = [dataset for dataset in datasets if dataset.annotations.suffix.lower() == ".json"]
    folders = sorted({record.path.parent for dataset in of_json for record in dataset.records})
    findings = []
    for folder in folders:
        files = sorted(path for path in folder.iterdir() if path.is_file() and not is_hidden(path.name))
        paths = [path for path in list_pictures(files).pictures if os.path.abspath(path) not in named]
        if paths:
            one, many = f"picture in {folder} is", f"pictures in {folder} are"
            text = f"{counted(len(paths), one, many)} neither in train nor in val"
            names = [path.name for path in paths]
            findings.append(finding("pictures-without-annotation", "both", len(paths), text, map(str, paths), names))
    return findings
