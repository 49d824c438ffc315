"""`trainer check-data`: the content of a data set and its faults, before hours are spent on training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from isodet.strict import to_mapping
from runtime.datasets import read_split
from runtime.datasets.split_list import unlisted_pictures
from runtime.images.image import Resize
from trainer.check.augment import augment_sheets
from trainer.check.boxes import unnamed_pictures
from trainer.check.findings import SEVERITIES, Finding, counted, finding, merged, summary
from trainer.check.near import near_across
from trainer.check.pictures import class_plot, sample_sheet, size_plot
from trainer.check.split import (
    Progress,
    SplitReport,
    class_lines,
    read_split_report,
    split_findings,
    split_lines,
)
from trainer.config.train import TrainConfig
from trainer.data.datasets import different_origins, train_data, val_data
from trainer.data.tiles import in_tiles
from trainer.data.train_set import resize_rule


@dataclass(frozen=True)
class DataReport:
    train: SplitReport
    val: SplitReport
    resize: Resize
    shared: tuple[tuple[Path, Path], ...]
    """Pictures that are in training and in validation, byte for byte."""
    near_shared: tuple[tuple[Path, Path], ...]
    """Pictures of training and of validation that look the same, and are not among `shared`."""
    findings: tuple[Finding, ...]
    """Everything that is wrong or doubtful, the most harmful first, with one entry for each id and split."""
    written: tuple[Path, ...]
    not_drawn: tuple[str, ...] = ()
    """Augmentations that have no picture, and why."""

    def warnings(self) -> list[str]:
        """A line on each error and each warning, the most harmful first; [] for a data set without any."""
        return [item.line() for item in self.findings if item.severity != "note"]

    def text(self) -> str:
        """The report for a terminal."""
        lines = []
        for split in (self.train, self.val):
            lines += [*split_lines(split, self.resize), ""]
        lines += [*class_lines(self.train.objects, self.val.objects), ""]
        lines.append("look at:" if self.warnings() else "nothing suspicious found")
        for severity in SEVERITIES:
            for item in self.findings:
                if item.severity == severity:
                    lines += [f"  - {severity}: {item.line()}", f"    {item.id}: {item.advice}"]
        lines.append(summary(self.findings))
        lines += ["", *(f"augment.{line}" for line in self.not_drawn)] if self.not_drawn else []
        return "\n".join([*lines, "", "wrote:", *(f"  {path}" for path in self.written)])


def check_data(
    config: TrainConfig,
    out: Path,
    progress: Progress | None = None,
    augment: Literal["on", "all"] | None = None,
    comparing: Progress | None = None,
) -> DataReport:
    """Read both splits of `config`, decode every picture, and write plots and sample sheets into `out`.

    `augment` adds `out/augment/`: a sheet for each augmentation that is on in `config`, or for "all" that exist.
    `progress` is called with (pictures done, pictures in all), `comparing` with (steps done, steps in all) of each
    search for near-duplicates. Raises `DatasetError` for an annotation file that cannot be used at all; every lesser
    fault is a finding of the report.
    """
    datasets = [train_data(config, repeat=False), val_data(config)]
    total = sum(len(dataset) for dataset in datasets)
    resize, tile_hw = resize_rule(config.model), None if config.data.tiles is None else config.tile_hw
    train = read_split_report("train", datasets[0], resize, tile_hw, progress, 0, total, comparing)
    val = read_split_report("val", datasets[1], resize, tile_hw, progress, len(datasets[0]), total, comparing)
    shared = tuple((train.digests[key], val.digests[key]) for key in train.digests if key in val.digests)
    near_shared = _near_shared(train, val, {path for _, path in shared}, comparing)
    out.mkdir(parents=True, exist_ok=True)
    unusable = {entry[0] for entry in train.broken} | {entry[0] for entry in train.wrong_size}
    views = in_tiles(train.dataset, config)
    written = [
        class_plot(train.objects, val.objects, out / "classes.png"),
        size_plot({split.name: np.sqrt(split.input_wh.prod(1)) for split in (train, val)}, out / "box_sizes.png"),
        *sample_sheet(views, unusable, config, out / "samples.jpg"),
    ]
    notes: list[str] = []
    if augment is not None:
        sheets, notes = augment_sheets(views, unusable, config, out / "augment", augment)
        written += sheets
    findings = merged(_findings(config, train, val, shared, near_shared))
    return DataReport(train, val, resize, shared, near_shared, tuple(findings), tuple(written), tuple(notes))


def _near_shared(
    train: SplitReport, val: SplitReport, identical: set[Path], comparing: Progress | None
) -> tuple[tuple[Path, Path], ...]:
    """A picture of training for each one of validation that looks the same and is not byte for byte in training."""
    train_paths, val_paths = list(train.looks), list(val.looks)
    pairs = near_across(list(train.looks.values()), list(val.looks.values()), comparing)
    copies = {path for group in val.copies for path in group if group[0] in identical} | identical
    return tuple((train_paths[b], val_paths[a]) for a, b in pairs.items() if val_paths[a] not in copies)


def _findings(
    config: TrainConfig,
    train: SplitReport,
    val: SplitReport,
    shared: Sequence[tuple[Path, Path]],
    near_shared: Sequence[tuple[Path, Path]],
) -> list[Finding]:
    findings = []
    for id, pairs, sign, one, many, text in (
        ("same-pictures-across-splits", shared, "=", "picture is", "pictures are",
         "in train and val; val mAP will flatter"),
        ("near-duplicates-across-splits", near_shared, "~", "picture of val looks", "pictures of val look",
         "like one of train: val mAP flatters"),
    ):  # fmt: skip
        if pairs:
            rows = [str(path) for pair in pairs for path in pair]
            shown = [f"{first.name} {sign} {second.name}" for first, second in pairs]
            findings.append(finding(id, "both", len(pairs), f"{counted(len(pairs), one, many)} {text}", rows, shown))
    unlisted = _unlisted(config, train, val)
    if unlisted:
        amount = counted(len(unlisted), "annotated picture is", "annotated pictures are")
        text = f"{amount} in none of the lists of pictures (not read)"
        names = [path.name for path in unlisted]
        findings.append(finding("pictures-in-no-split", "both", len(unlisted), text, map(str, unlisted), names))
    findings += unnamed_pictures([train.dataset, val.dataset], {os.path.abspath(path) for path in unlisted})
    if origins := different_origins(config, train.dataset, val.dataset):
        files = [str(split.dataset.annotations) for split in (train, val)]
        findings.append(finding("voc-origins-differ", "both", 2, origins, files, []))
    named = {split.name: {os.path.abspath(path) for path in split.looks} for split in (train, val)}
    return [*findings, *split_findings(train, named["val"]), *split_findings(val, named["train"])]


def _unlisted(config: TrainConfig, train: SplitReport, val: SplitReport) -> list[Path]:
    """Annotated pictures of the data sets that lists of pictures divide, which no split has."""
    listed = [split for split in (*config.data.train_splits, config.data.val) if split.pictures is not None]
    known = {os.path.abspath(path) for split in (train, val) for path in split.looks}
    by_annotations = {(split.annotations, split.split): split for split in listed}
    unlisted: dict[str, Path] = {}
    for key, split in by_annotations.items():
        whole = {**to_mapping(split), "pictures": None}
        dataset = read_split(whole, config.model.classes, "train", allow_absent=True)
        lists = [Path(s.pictures) for s in listed if s.pictures is not None and (s.annotations, s.split) == key]
        unlisted |= {os.path.abspath(path): path for path in unlisted_pictures(dataset, lists)}
    return [path for name, path in unlisted.items() if name not in known]
