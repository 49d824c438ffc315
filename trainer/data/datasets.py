"""The data sets of a configuration: reading them and putting them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from isodet.strict import to_mapping
from runtime.datasets import read_split
from runtime.datasets.annotations import (
    ABSENT_CLASS,
    CocoDataset,
    DatasetError,
    ImageRecord,
    Problem,
    Problems,
    nearest_class,
)
from trainer.config.train import TrainConfig


def train_data(config: TrainConfig, repeat: bool = True) -> CocoDataset:
    """All sets of `data.train` as one: without empty images where the config drops them, and repeated if `repeat`.

    A class may be missing in some of the sets. Raises `DatasetError`.
    """
    splits, classes = config.data.train_splits, config.model.classes
    datasets = [read_split(to_mapping(split), classes, "train", allow_absent=len(splits) > 1) for split in splits]
    dataset = datasets[0] if len(datasets) == 1 else concatenate(datasets)
    examples = {part.voc_origin: part.annotations for part in reversed(datasets) if part.voc_origin is not None}
    if len(examples) > 1 and any(
        split.voc_origin == "auto" and part.voc_origin is not None for split, part in zip(splits, datasets, strict=True)
    ):
        problems = dataset.problems
        dataset = replace(dataset, problems=replace(problems, notes=(*problems.notes, _origins_line(examples))))
    if config.data.empty_images == "drop":
        datasets = [without_empty_images(part) for part in datasets]
    times = [split.repeat if repeat else 1 for split in splits]
    if max(times) > 1 or config.data.empty_images == "drop":
        parts = _numbered(datasets)
        records = [r for part, count in zip(parts, times, strict=True) for r in part * count]
        if not records:
            raise DatasetError.at(dataset.annotations, "no image has an object to train on (data.empty_images is drop)")
        dataset = replace(dataset, records=tuple(records))
    return dataset


def val_data(config: TrainConfig) -> CocoDataset:
    """`data.val` with all images: on an empty one, no detection is the right answer."""
    return read_split(to_mapping(config.data.val), config.model.classes, "val")


def different_origins(config: TrainConfig, train: CocoDataset, val: CocoDataset) -> str:
    """A warning that Pascal VOC files of training and validation count from different origins, and how to settle it.

    It is '' where they agree, and where the configuration names both origins.
    """
    first, second = train.voc_origin, val.voc_origin
    named = config.data.val.voc_origin == val.voc_origin and any(
        split.voc_origin == train.voc_origin for split in config.data.train_splits
    )
    if first is None or second is None or first == second or named:
        return ""
    return _origins_line({first: train.annotations, second: val.annotations})


def _origins_line(examples: Mapping[int, Path]) -> str:
    return (
        f"VOC coordinates count from 0 in {examples[0]} and from 1 in {examples[1]}; if one tool wrote both, set "
        "voc_origin: 0 for both (their boxes are a pixel apart now), else voc_origin: 0 for one and 1 for the other"
    )


def without_empty_images(dataset: CocoDataset) -> CocoDataset:
    """Only the images with an object that is not ignored."""
    return replace(dataset, records=tuple(record for record in dataset.records if not record.crowd.all()))


def concatenate(datasets: Sequence[CocoDataset]) -> CocoDataset:
    """One data set of several with the same class names. `annotations` names the file of the first.

    Image ids stay where no two are the same. Otherwise those of each later set are raised, all by the same number, so
    that they follow the ids before. Raises `DatasetError` for a class that none of the sets knows.
    """
    names = datasets[0].class_names
    for dataset in datasets:
        if dataset.class_names != names:
            raise DatasetError.at(dataset.annotations, f"its classes differ from those of {datasets[0].annotations}")
    absent = [{p.detail for p in dataset.problems.items if p.reason == ABSENT_CLASS} for dataset in datasets]
    for detail in sorted(set.intersection(*absent)):
        known = [name for name in names if repr(name) not in set.intersection(*absent)]
        files = ", ".join(str(dataset.annotations) for dataset in datasets)
        raise DatasetError(f"{files}: none of them has a class {detail}; {nearest_class(detail.strip(chr(39)), known)}")
    origins = {dataset.voc_origin for dataset in datasets} - {None}
    problems: list[Problem] = [item for dataset in datasets for item in dataset.problems.items]
    return CocoDataset(
        annotations=datasets[0].annotations,
        images_dir=datasets[0].images_dir,
        class_names=names,
        category_ids=tuple(range(1, len(names) + 1)),
        records=tuple(record for part in _numbered(datasets) for record in part),
        problems=Problems(tuple(problems), tuple(note for dataset in datasets for note in dataset.problems.notes)),
        voc_origin=origins.pop() if len(origins) == 1 else None,
        files=tuple(path for dataset in datasets for path in dataset.files or (dataset.annotations,)),
    )


def _numbered(datasets: Sequence[CocoDataset]) -> list[tuple[ImageRecord, ...]]:
    """The records of each data set, with image ids that are unique over all of them."""
    ids = [record.id for dataset in datasets for record in dataset.records]
    if len(set(ids)) == len(ids):
        return [dataset.records for dataset in datasets]
    parts: list[tuple[ImageRecord, ...]] = []
    following: int | None = None
    for dataset in datasets:
        set_ids = [record.id for record in dataset.records]
        move = 0 if following is None or not set_ids else following - min(set_ids)
        parts.append(tuple(replace(record, id=record.id + move) if move else record for record in dataset.records))
        if set_ids:
            following = max(set_ids) + move + 1
    return parts
