"""Annotated data sets: one reader for each format, and `read_dataset`, which tells the formats apart by content.

| format | `annotations` names | folder of the pictures by default |
|---|---|---|
| coco | a JSON object with images, annotations, categories, or its folder | a folder named as the file, else its own |
| list | a JSON list of {filename, width, height, ann} | the same |
| voc | a folder of .xml, a VOC folder, its ImageSets/Main/train.txt | JPEGImages by Annotations, else with the .xml |
| yolo | data.yaml, or a folder of labels with classes.txt | images/ for labels/, else with the .txt |
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from runtime.card.card import sha256_file
from runtime.datasets.annotations import CocoDataset, DatasetError
from runtime.datasets.coco import read_coco
from runtime.datasets.formats import FORMATS, Format, json_of_folder, pictures_of_json, tell_format
from runtime.datasets.plain import read_list
from runtime.datasets.shares import part_of
from runtime.datasets.split_list import listed_part
from runtime.datasets.voc import Origin, read_voc
from runtime.datasets.yolo import read_yolo

__all__ = ["FORMATS", "Format", "Origin", "fingerprint", "read_dataset", "read_split", "tell_format"]


def read_dataset(
    annotations: str | PathLike[str],
    images: str | PathLike[str] | None = None,
    classes: Sequence[str] | None = None,
    format: Format | Literal["auto"] = "auto",
    split: str = "val",
    check_files: bool = True,
    allow_absent: bool = False,
    voc_origin: Origin = "auto",
    val_share: float = 0.0,
    pictures: str | PathLike[str] | None = None,
) -> CocoDataset:
    """Read annotations of any format, which is detected by content unless `format` names it.

    `images` is the folder that file names are relative to; the table of this module gives its default. `classes`
    selects and orders the labels. `split` chooses among train, val and test of a YOLO data.yaml, and among the COCO
    files of a folder; other sources have one split. `voc_origin` is the number that VOC coordinates count from.
    `val_share` keeps that share of the pictures for the split val, and the others for train
    (`runtime.datasets.shares`). `pictures` is a list of the pictures to keep (`runtime.datasets.split_list`).
    `check_files` leaves out, and lists, images whose file is missing. A class that a
    COCO, YOLO or list file does not know is an error unless `allow_absent`. VOC files know only the classes of their
    objects: an unknown class is listed in `problems`, and is an error only where none of `classes` has an object.

    Raises `DatasetError` for annotations that cannot be used at all; `problems` lists what is wrong with single images.
    """
    path = Path(annotations)
    folder = None if images is None else Path(images)
    if folder is not None and not os.path.isdir(folder):
        raise DatasetError.at(folder, f"no such images folder (file names in {path} are relative to it)")
    kind = tell_format(path) if format == "auto" else format
    if kind == "voc":
        dataset = read_voc(path, folder, classes, check_files, allow_absent, voc_origin)
    elif kind == "yolo":
        # A share is cut from the one split that there is.
        dataset = read_yolo(path, folder, classes, "train" if val_share else split, allow_absent)
    else:
        if os.path.isdir(path):
            path = json_of_folder(path, "train" if val_share else split)
        folder = pictures_of_json(path) if folder is None else folder
        read = read_list if kind == "list" or tell_format(path) == "list" else read_coco
        dataset = read(path, folder, classes, check_files, allow_absent)
    if pictures is not None:
        dataset = listed_part(dataset, Path(pictures))
    return part_of(dataset, split, val_share) if val_share else dataset


def read_split(
    split: Mapping[str, Any], classes: Sequence[str], name: Literal["train", "val"], allow_absent: bool = False
) -> CocoDataset:
    """Read a split as a training configuration or a card describes it.

    Its keys are `annotations`, `images`, `pictures`, `format`, `split`, `voc_origin` and `val_share`; `name` is the key
    of the split itself. A list of pictures divides the one split that there is, train. Arguments and errors
    are those of `read_dataset`.
    """
    return read_dataset(
        split["annotations"],
        split.get("images"),
        classes,
        format=split["format"] if split.get("format") in FORMATS else "auto",
        split=split.get("split") or ("train" if split.get("pictures") else name),
        allow_absent=allow_absent,
        voc_origin=split["voc_origin"] if split.get("voc_origin") in (0, 1) else "auto",
        val_share=float(split.get("val_share") or 0),
        pictures=split.get("pictures"),
    )


def fingerprint(dataset: CocoDataset) -> str:
    """SHA-256 of the annotations: of their file, or of the names and hashes of all their files."""
    if not dataset.files:
        return sha256_file(dataset.annotations)
    digest = hashlib.sha256()
    for path in dataset.files:
        try:
            content = sha256_file(path)
        except OSError:  # reading left it out, too; once it is readable, the data has changed
            content = "unreadable"
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()
