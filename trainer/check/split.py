"""The content of one split of a data set, and the findings on it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.datasets.annotations import CocoDataset, ImageRecord
from runtime.files.text_table import text_table
from runtime.images.image import FixedSize, Resize
from trainer.check.boxes import doubtful_boxes, problem_findings
from trainer.check.decoded import decode_pictures
from trainer.check.findings import Finding, Where, counted, finding
from trainer.check.near import near_groups

Progress = Callable[[int, int], None]

SMALL, LARGE = 32.0**2, 96.0**2
"""COCO's limits between small, medium and large, square pixels."""
HARD_SIDE = 8.0
"""Pixels at the input; objects with a smaller side cover one cell of the finest usual level or less."""
_MANY_HARD = 0.1
"""Share of such objects above which they are a warning, not a note."""
_SKEW = 50
"""A class with fewer objects than 1/50 of the most frequent one's is rare."""


@dataclass(frozen=True)
class SplitReport:
    """The content of one split. Box arrays have one entry for each object that is not a crowd."""

    name: Where
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
    near_copies: tuple[tuple[Path, ...], ...]
    """Groups of files that look the same, and of which not all have the same bytes."""
    digests: dict[str, Path]
    """SHA-256 to one of the files that have it."""
    looks: dict[Path, int | None]
    """The perceptual hash of each file (`trainer.check.near`); None for a broken or a flat picture."""


def read_split_report(
    name: Where,
    dataset: CocoDataset,
    resize: Resize,
    tile_hw: tuple[int, int] | None,
    progress: Progress | None,
    done: int,
    total: int,
    comparing: Progress | None,
) -> SplitReport:
    """Decode every picture of a split and count what is there.

    `tile_hw`: size of the tiles that pictures are cut into, None: they are not.
    `progress` is called with (pictures done, `total`), counted from `done`; `comparing` with the steps of the search
    for near-duplicates.
    """
    broken, wrong_size, turned = [], [], 0
    by_digest: dict[str, list[Path]] = defaultdict(list)
    digest_of: dict[Path, str] = {}
    looks: dict[Path, int | None] = {}
    files = {record.path: record for record in dataset.records}
    for picture in decode_pictures(list(files), progress, done, total):
        record, path, size = files[picture.path], picture.path, picture.size_hw
        digest_of[path], looks[path] = picture.digest, picture.look
        if picture.digest:
            by_digest[picture.digest].append(path)
        if size is None:
            broken.append((path, picture.reason))
        elif size == (record.width, record.height) != (record.height, record.width) and picture.orientation >= 5:
            turned += 1
        elif size != (record.height, record.width):
            wrong_size.append((path, (record.height, record.width), size))
    if progress is not None:
        progress(done + len(dataset), total)
    alike = [[list(looks)[place] for place in group] for group in near_groups(list(looks.values()), comparing)]
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
        input_wh=np.concatenate([input_sides(record, resize, tile_hw) for record in dataset.records]),
        broken=tuple(broken),
        wrong_size=tuple(wrong_size),
        turned=turned,
        repeated_files=tuple(path for path, count in named.items() if count > 1),
        copies=tuple(tuple(paths) for paths in by_digest.values() if len(paths) > 1),
        near_copies=tuple(tuple(group) for group in alike if len({digest_of[path] for path in group}) > 1),
        digests={digest: paths[0] for digest, paths in by_digest.items()},
        looks=looks,
    )


def input_sides(record: ImageRecord, resize: Resize, tile_hw: tuple[int, int] | None = None) -> NDArray[np.float32]:
    """[G,2] widths and heights, in pixels of the resized input, of a record's objects that are not crowds.

    `tile_hw`: the input is a tile of this size, which a larger object is cut by.
    """
    hw = record.height, record.width
    boxes = record.boxes_xyxy[~record.crowd]
    if tile_hw is None:
        boxes = resize.fit(hw).to_input(boxes)
        return boxes[:, 2:] - boxes[:, :2]
    size_hw = min(hw[0], tile_hw[0]), min(hw[1], tile_hw[1])
    sides = np.minimum(boxes[:, 2:] - boxes[:, :2], size_hw[::-1])
    return (sides * resize.fit(size_hw).scale_xy).astype(np.float32)


# ---------------------------------------------------------------------------------------------
# findings


def split_findings(split: SplitReport, elsewhere: Collection[str]) -> list[Finding]:
    """The findings on one split. `elsewhere` has the absolute paths of the pictures of the other one."""
    findings: list[Finding] = []

    def add(id: str, one: str, many: str, paths: list[Path], shown: list[str] | None = None) -> None:
        if paths:
            names = [path.name for path in paths] if shown is None else shown
            text = counted(len(names), one, many)
            findings.append(finding(id, split.name, len(names), text, map(str, paths), names))

    add(
        "broken-pictures", "broken picture", "broken pictures", [path for path, _ in split.broken],
        [f"{path} ({reason})" for path, reason in split.broken],
    )  # fmt: skip
    add(
        "wrong-size", "picture whose size is not the annotated one (not trained on)",
        "pictures whose size is not the annotated one (not trained on)", [path for path, _, _ in split.wrong_size],
        [f"{path.name} is {_wide(real)}, annotated {_wide(annotated)}" for path, annotated, real in split.wrong_size],
    )  # fmt: skip
    findings += problem_findings(split.name, split.dataset, elsewhere)
    findings += doubtful_boxes(split.name, split.dataset)
    add(
        "pictures-twice", "file is named by several images", "files are named by several images",
        list(split.repeated_files),
    )  # fmt: skip
    add(
        "identical-pictures", "group of identical pictures", "groups of identical pictures",
        [path for group in split.copies for path in group],
        [" = ".join(path.name for path in group[:3]) for group in split.copies],
    )  # fmt: skip
    add(
        "near-duplicates-within-split", "group of pictures that look the same", "groups of pictures that look the same",
        [path for group in split.near_copies for path in group],
        [" ~ ".join(path.name for path in group[:3]) for group in split.near_copies],
    )  # fmt: skip
    add("pictures-without-objects", "picture without objects", "pictures without objects", _empty(split.dataset))
    return [*findings, *_class_findings(split), *_size_findings(split)]


def _empty(dataset: CocoDataset) -> list[Path]:
    return list(dict.fromkeys(record.path for record in dataset.records if len(record.labels) == 0))


def _class_findings(split: SplitReport) -> list[Finding]:
    """A finding on classes without an object, and one on classes that are rare in training."""
    findings = []
    absent = [name for name, count in split.objects.items() if count == 0]
    if absent:
        text = f"no object of {counted(len(absent), 'class', 'classes')}"
        findings.append(finding(f"class-missing-in-{split.name}", split.name, len(absent), text, absent))
    most = max(split.objects.values(), default=0)
    rare = [name for name, count in split.objects.items() if 0 < count * _SKEW < most]
    if rare and split.name == "train":
        shown = [f"{name} has {split.objects[name]}" for name in rare]
        amount = counted(len(rare), "class has", "classes have")
        text = f"{amount} fewer objects than 1/{_SKEW} of the most frequent one's {most}"
        findings.append(finding("label-skew", split.name, len(rare), text, rare, shown))
    return findings


def _size_findings(split: SplitReport) -> list[Finding]:
    """A finding on objects that are small at the input: a note, or where they are many a warning."""
    is_hard = split.input_wh.min(1) < HARD_SIDE
    if not is_hard.any():
        return []
    share = float(is_hard.mean())
    few = counted(int(is_hard.sum()), "object has", "objects have")
    amount = f"{share:.0%} of the objects have" if share >= 0.01 else few
    records = [record for record in split.dataset.records for _ in range(int((~record.crowd).sum()))]
    paths = [record.path for record, hard in zip(records, is_hard.tolist(), strict=True) if hard]
    return [
        finding(
            "small-objects", split.name, len(paths),
            f"{amount} a side below {HARD_SIDE:.0f} px at the input",
            map(str, paths), [path.name for path in paths], "warning" if share > _MANY_HARD else "note",
        )
    ]  # fmt: skip


def _wide(size_hw: tuple[int, int]) -> str:
    return f"{size_hw[1]}x{size_hw[0]}"


# ---------------------------------------------------------------------------------------------
# words


def split_lines(split: SplitReport, resize: Resize) -> list[str]:
    objects = sum(split.objects.values())
    ignored = counted(split.crowds, "ignored box", "ignored boxes")
    crowds = f", and {ignored} (crowds, difficult, ignore regions)" if split.crowds else ""
    images = f"{counted(len(split.dataset), 'image', 'images')}, {split.empty_images} of them without objects"
    lines = [
        f"{split.name}: {images}; {counted(objects, 'object', 'objects')}{crowds}",
        f"  {split.dataset.annotations}",
        *(f"  {note}" for note in split.dataset.problems.notes),
    ]
    if split.turned:
        one = "picture is turned by its EXIF orientation, and its boxes with it"
        many = "pictures are turned by their EXIF orientation, and their boxes with them"
        lines.append(f"  {counted(split.turned, one, many)}")
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


def class_lines(train: dict[str, int], val: dict[str, int]) -> list[str]:
    ranked = sorted(train, key=lambda name: -train[name])
    shown = ranked if len(ranked) <= 40 else [*ranked[:20], "...", *ranked[-20:]]
    rows = [[name, str(train.get(name, "")), str(val.get(name, ""))] for name in shown]
    return text_table(["class", "train", "val"], rows, left={"class"})


def _named(resize: Resize) -> str:
    if isinstance(resize, FixedSize):
        return f"sizes at {resize.size_hw[0]}x{resize.size_hw[1]} (HxW):"
    return f"at short side {resize.short}:"
