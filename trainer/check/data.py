"""`trainer check-data`: the content of a data set and its faults, before hours are spent on training."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from runtime.datasets.annotations import CocoDataset, ImageRecord
from runtime.files.text_table import text_table
from runtime.images.encoded import exif_orientation
from runtime.images.image import FixedSize, ImageError, Resize, decode_image
from trainer.check.augment import augment_sheets
from trainer.check.boxes import doubtful_boxes, examples, problem_text, unnamed_pictures
from trainer.check.pictures import class_plot, sample_sheet, size_plot
from trainer.config.train import TrainConfig
from trainer.data.datasets import different_origins, train_data, val_data
from trainer.data.train_set import resize_rule

Progress = Callable[[int, int], None]

SMALL, LARGE = 32.0**2, 96.0**2
"""COCO's limits between small, medium and large, square pixels."""
HARD_SIDE = 8.0
"""Pixels at the input; objects with a smaller side cover one cell of the finest usual level or less."""


@dataclass(frozen=True)
class SplitReport:
    """The content of one split. Box arrays have one entry for each object that is not a crowd."""

    name: str
    dataset: CocoDataset
    objects: dict[str, int]
    """By class, in label order."""
    crowds: int
    empty_images: int
    source_areas: NDArray[np.float32]
    """[G] square pixels as annotated."""
    input_wh: NDArray[np.float32]
    """[G,2] width and height at the network's input, pixels."""
    broken: tuple[tuple[Path, str], ...]
    """Pictures that cannot be decoded, and why."""
    wrong_size: tuple[tuple[Path, tuple[int, int], tuple[int, int]], ...]
    """(picture, annotated height and width, real height and width)."""
    turned: int
    """Pictures that are annotated as stored, and turned by their EXIF orientation; their boxes are turned with them."""
    repeated_files: tuple[Path, ...]
    """Files that several images of the annotations name."""
    copies: tuple[tuple[Path, ...], ...]
    """Groups of different files with the same bytes."""
    hashes: dict[str, Path]
    """SHA-256 to one of the files that have it."""


@dataclass(frozen=True)
class DataReport:
    train: SplitReport
    val: SplitReport
    resize: Resize
    shared: tuple[tuple[Path, Path], ...]
    """Pictures that are in training and in validation, byte for byte."""
    origins: str
    """A warning where the Pascal VOC files of both splits count from different origins; else ''."""
    written: tuple[Path, ...]
    not_drawn: tuple[str, ...] = ()
    """Augmentations that have no picture, and why."""

    def warnings(self) -> list[str]:
        """A line on each possible fault, the most harmful first; [] for a data set without any."""
        lines = []
        if self.shared:
            pairs = [f"{a.name} = {b.name}" for a, b in self.shared]
            lines.append(f"{len(self.shared)} pictures are in train and val; val mAP will flatter ({examples(pairs)})")
        lines += unnamed_pictures([self.train.dataset, self.val.dataset])
        lines += [self.origins] if self.origins else []
        return [*lines, *_split_warnings(self.train), *_split_warnings(self.val)]

    def text(self) -> str:
        """The report for a terminal."""
        lines = []
        for split in (self.train, self.val):
            lines += [*_split_lines(split, self.resize), ""]
        lines += _class_lines(self.train.objects, self.val.objects)
        warnings = self.warnings()
        lines += ["", "look at:" if warnings else "nothing suspicious found", *(f"  - {line}" for line in warnings)]
        lines += ["", *(f"augment.{line}" for line in self.not_drawn)] if self.not_drawn else []
        return "\n".join([*lines, "", "wrote:", *(f"  {path}" for path in self.written)])


def check_data(
    config: TrainConfig, out: Path, progress: Progress | None = None, augment: Literal["on", "all"] | None = None
) -> DataReport:
    """Read both splits of `config`, decode every picture, and write plots and sample sheets into `out`.

    `augment` adds `out/augment/`: a sheet for each augmentation that is on in `config`, or for "all" that exist.
    `progress` is called with (pictures done, pictures in all). Raises `DatasetError` for an annotation file
    that cannot be used at all; every lesser fault is counted in the report.
    """
    datasets = [train_data(config, repeat=False), val_data(config)]
    total = sum(len(dataset) for dataset in datasets)
    reports, done, resize = [], 0, resize_rule(config.model)
    for name, dataset in zip(("train", "val"), datasets, strict=True):
        reports.append(_check_split(name, dataset, resize, progress, done, total))
        done += len(dataset)
    train, val = reports
    shared = tuple((train.hashes[key], val.hashes[key]) for key in train.hashes if key in val.hashes)
    out.mkdir(parents=True, exist_ok=True)
    unusable = {entry[0] for entry in train.broken} | {entry[0] for entry in train.wrong_size}
    written = [
        class_plot(train.objects, val.objects, out / "classes.png"),
        size_plot({split.name: np.sqrt(split.input_wh.prod(1)) for split in reports}, out / "box_sizes.png"),
        *sample_sheet(train.dataset, unusable, config, out / "samples.jpg"),
    ]
    notes: list[str] = []
    if augment is not None:
        sheets, notes = augment_sheets(train.dataset, unusable, config, out / "augment", augment)
        written += sheets
    origins = different_origins(config, train.dataset, val.dataset)
    return DataReport(train, val, resize, shared, origins, tuple(written), tuple(notes))


def _check_split(
    name: str, dataset: CocoDataset, resize: Resize, progress: Progress | None, done: int, total: int
) -> SplitReport:
    broken, wrong_size, turned = [], [], 0
    by_hash: dict[str, list[Path]] = defaultdict(list)
    files = {record.path: record for record in dataset.records}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoding releases Python's lock
        decoded = zip(files.values(), pool.map(_decode, files), strict=True)
        for count, (record, (digest, size, orientation, reason)) in enumerate(decoded, start=1):
            path = record.path
            if digest:
                by_hash[digest].append(path)
            if size is None:
                broken.append((path, reason))
            elif size == (record.width, record.height) != (record.height, record.width) and orientation >= 5:
                turned += 1
            elif size != (record.height, record.width):
                wrong_size.append((path, (record.height, record.width), size))
            if progress is not None:
                progress(done + count, total)
    if progress is not None:
        progress(done + len(dataset), total)
    named = Counter(record.path for record in dataset.records)
    labels = [label for record in dataset.records for label in record.labels[~record.crowd].tolist()]
    counts = np.bincount(np.array(labels, np.int64), minlength=len(dataset.class_names)).tolist()
    return SplitReport(
        name=name,
        dataset=dataset,
        objects=dict(zip(dataset.class_names, counts, strict=True)),
        crowds=sum(int(record.crowd.sum()) for record in dataset.records),
        empty_images=sum(len(record.labels) == 0 for record in dataset.records),
        source_areas=np.concatenate([record.area[~record.crowd] for record in dataset.records]),
        input_wh=np.concatenate([input_sides(record, resize) for record in dataset.records]),
        broken=tuple(broken),
        wrong_size=tuple(wrong_size),
        turned=turned,
        repeated_files=tuple(path for path, count in named.items() if count > 1),
        copies=tuple(tuple(paths) for paths in by_hash.values() if len(paths) > 1),
        hashes={digest: paths[0] for digest, paths in by_hash.items()},
    )


def input_sides(record: ImageRecord, resize: Resize) -> NDArray[np.float32]:
    """[G,2] widths and heights, in pixels of the resized input, of a record's objects that are not crowds."""
    boxes = resize.fit((record.height, record.width)).to_input(record.boxes_xyxy[~record.crowd])
    return boxes[:, 2:] - boxes[:, :2]


def _decode(path: Path) -> tuple[str, tuple[int, int] | None, int, str]:
    """(SHA-256, upright height and width, EXIF orientation, ''); size None and a reason where the file is broken."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return "", None, 1, f"cannot be read: {error.strerror}"
    digest = hashlib.sha256(data).hexdigest()
    try:
        image = decode_image(data, path)
    except ImageError as error:
        return digest, None, 1, error.reason
    return digest, (image.shape[0], image.shape[1]), exif_orientation(data), ""


# ---------------------------------------------------------------------------------------------
# words


def _split_lines(split: SplitReport, resize: Resize) -> list[str]:
    objects = sum(split.objects.values())
    crowds = f", and {split.crowds} ignored boxes (crowds, difficult, ignore regions)" if split.crowds else ""
    lines = [
        f"{split.name}: {len(split.dataset)} images, {split.empty_images} of them without objects; "
        f"{objects} objects{crowds}",
        f"  {split.dataset.annotations}",
        *(f"  {note}" for note in split.dataset.problems.notes),
    ]
    if split.turned:
        lines.append(f"  {split.turned} pictures are turned by their EXIF orientation, and their boxes with them")
    if objects:
        sides = np.sqrt(split.input_wh.prod(1))
        aspect = split.input_wh[:, 0] / np.maximum(split.input_wh[:, 1], 1e-6)
        lines += [
            f"  sizes as annotated:     {_size_shares(split.source_areas)}",
            f"  {_named(resize):<24}{_size_shares(split.input_wh.prod(1))}",
            f"  side at the input, px:  {_quantiles(sides, '{:.0f}')}",
            f"  width / height:         {_quantiles(aspect, '{:.2f}')}",
        ]
    return lines


def _size_shares(areas: NDArray[np.float32]) -> str:
    small, large = float((areas < SMALL).mean()), float((areas >= LARGE).mean())
    return f"small {small:.0%}, medium {1 - small - large:.0%}, large {large:.0%} (limits 32 and 96 px)"


def _quantiles(values: NDArray[np.floating], form: str) -> str:
    points = np.quantile(values, [0.0, 0.05, 0.5, 0.95, 1.0])
    words = ("least", "5 %", "median", "95 %", "most")
    return ", ".join(f"{word} {form.format(point)}" for word, point in zip(words, points, strict=True))


def _class_lines(train: dict[str, int], val: dict[str, int]) -> list[str]:
    ranked = sorted(train, key=lambda name: -train[name])
    shown = ranked if len(ranked) <= 40 else [*ranked[:20], "...", *ranked[-20:]]
    rows = [[name, str(train.get(name, "")), str(val.get(name, ""))] for name in shown]
    return text_table(["class", "train", "val"], rows, left={"class"})


def _split_warnings(split: SplitReport) -> list[str]:
    lines: list[str] = []

    def add(text: str, rows: list[str]) -> None:
        if rows:
            lines.append(f"{text.format(len(rows))}: {examples(rows)}")

    problems = split.dataset.problems
    add("{} broken pictures", [f"{path} ({reason})" for path, reason in split.broken])
    add(
        "{} pictures whose size is not the annotated one (not trained on)",
        [f"{path.name} is {_wide(real)}, annotated {_wide(said)}" for path, said, real in split.wrong_size],
    )
    for reason, count in problems.counts.items():
        rows = [problem_text(item) for item in problems.items if item.reason == reason]
        lines.append(f"{count} {reason}: {examples(rows)}")
    lines += doubtful_boxes(split.dataset)
    add("{} files are named by several images", [path.name for path in split.repeated_files])
    add("{} groups of identical pictures", [" = ".join(path.name for path in group[:3]) for group in split.copies])
    add("no object of {} classes", [class_name for class_name, count in split.objects.items() if count == 0])
    tiny = float((split.input_wh.min(1) < HARD_SIDE).mean()) if len(split.input_wh) else 0.0
    if tiny > 0.1:
        lines.append(
            f"{tiny:.0%} of the objects have a side below {HARD_SIDE:.0f} px at the input; a larger "
            "model.input_size_hw would show more of them"
        )
    return [f"{split.name}: {line}" for line in lines]


def _named(resize: Resize) -> str:
    if isinstance(resize, FixedSize):
        return f"sizes at {resize.size_hw[0]}x{resize.size_hw[1]} (HxW):"
    return f"at short side {resize.short}:"


def _wide(size_hw: tuple[int, int]) -> str:
    return f"{size_hw[1]}x{size_hw[0]}"
