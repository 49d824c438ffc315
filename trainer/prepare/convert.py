"""`trainer convert`: a data set from one format into another, with notes on what is lost."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

import cv2

from runtime.datasets import Format, Origin, read_dataset
from runtime.datasets.annotations import CocoDataset, DatasetError, ImageRecord
from trainer.prepare.writers import write_coco, write_list, write_voc, write_yolo

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Conversion:
    dataset: CocoDataset
    """What was read."""
    written: tuple[Path, ...]
    annotations: Path
    """What to give to other commands as annotations."""
    images: Path
    """The folder of pictures that belongs to them."""
    notes: tuple[str, ...]
    """What the new format could not represent, one sentence each; empty where nothing was lost."""


def convert(
    source: str | PathLike[str],
    to: Format,
    out: str | PathLike[str],
    images: str | PathLike[str] | None = None,
    classes: Sequence[str] | None = None,
    pictures: Literal["leave", "copy", "link"] = "leave",
    format: Format | Literal["auto"] = "auto",
    split: str = "train",
    progress: Progress | None = None,
    voc_origin: Origin = "auto",
) -> Conversion:
    """Write the data set `source` (of any format, as `read_dataset` reads it) to `out` in the format `to`.

    `out` is a file for coco and list, which are JSON, and a folder for voc and yolo. `classes` selects and orders.
    pictures: leave them where they are, copy them, or write symbolic links, in JPEGImages/ (voc), images/ (yolo) or
    the folder named as the file. Boxes keep float32 precision in coco, list and yolo (10 digits); voc has whole
    pixels from 1, both ends included: xmin = round(x1) + 1, xmax = round(x2), or the one pixel that the middle is in.

    Only pictures are copied or linked: annotations from elsewhere may name any file of this machine.
    Everything is written, or nothing. Raises `DatasetError` for a source that cannot be read or named in the
    new format, and for an `out` that exists.
    """
    out = Path(out)
    folder = out.with_suffix("") if to in ("coco", "list") else out
    if to in ("coco", "list") and out.suffix.lower() != ".json":
        raise DatasetError.at(out, f"{to} is one file; expected a name that ends in .json")
    beside = [out.with_suffix(".classes.txt")] if to == "list" else []
    for path in (out, *beside, *([] if pictures == "leave" else [folder])):
        if path.exists() or path.is_symlink():
            raise DatasetError.at(path, "already exists; choose another --out, or remove it first")
    dataset = read_dataset(source, images, classes, format, split, voc_origin=voc_origin)
    names = relative_names(dataset, by_stem=to in ("voc", "yolo"))
    out.parent.mkdir(parents=True, exist_ok=True)
    if pictures != "leave":
        require_pictures(dataset)
    with tempfile.TemporaryDirectory(prefix=f".{out.stem}.", dir=out.parent) as temporary:
        partial = Path(temporary) / "whole"
        partial.mkdir()
        place = partial / {"voc": "JPEGImages", "yolo": "images"}.get(to, "pictures")
        if pictures != "leave":
            place.mkdir()
        for done, (record, name) in enumerate(zip(dataset.records, names, strict=True), start=1):
            target = place / name
            if pictures != "leave":
                target.parent.mkdir(parents=True, exist_ok=True)
            if pictures == "copy":
                shutil.copy2(record.path, target)
            elif pictures == "link":
                target.symlink_to(record.path.resolve())
            if progress is not None:
                progress(done, len(names))
        if to in ("coco", "list"):
            write = write_coco if to == "coco" else write_list
            notes = write(dataset, names, partial / out.name)
        elif to == "voc":
            notes = write_voc(dataset, names, partial, split)
        else:
            notes = write_yolo(dataset, names, partial, split, pictures != "leave")
        written = _moved(partial, place, out, folder, to)
    images_dir = dataset.images_dir if pictures == "leave" else folder / place.name if to in ("voc", "yolo") else folder
    annotations = out / "labels" if to == "yolo" and pictures == "leave" else out
    source_dir = dataset.images_dir.resolve()
    outside = [record.path for record in dataset.records if not record.path.resolve().is_relative_to(source_dir)]
    if pictures != "leave" and outside:
        verb = "copied" if pictures == "copy" else "linked"
        notes = [
            f"{len(outside)} pictures from outside of {dataset.images_dir} were {verb}, the first: {outside[0]}; "
            "look at them before you hand the data set on",
            *notes,
        ]
    if problems := dataset.problems.summary():
        notes = [f"the source: {problems}", *notes]
    return Conversion(dataset, written, annotations, images_dir, tuple(notes))


def relative_names(dataset: CocoDataset, by_stem: bool) -> list[str]:
    """File names of the pictures below their folder, with forward slashes.

    Raises `DatasetError` for two pictures of one name; with `by_stem` also where names differ in the suffix only, so
    that they would share an annotation file.
    """
    names: list[str] = []
    taken: dict[str, ImageRecord] = {}
    for record in dataset.records:
        path, folder = Path(os.path.abspath(record.path)), Path(os.path.abspath(dataset.images_dir))
        name = path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)
        stem = (name.with_suffix("") if by_stem else name).as_posix()
        if stem in taken:
            raise DatasetError.at(
                dataset.annotations,
                f"images {taken[stem].id} ({taken[stem].path}) and {record.id} ({record.path}) "
                "would have the same name; rename one of the files",
            )
        taken[stem] = record
        names.append(name.as_posix())
    return names


def require_pictures(dataset: CocoDataset) -> None:
    """Raise `DatasetError` for the first file of `dataset` that is no picture by its content."""
    for record in dataset.records:
        if not cv2.haveImageReader(str(record.path)):
            raise DatasetError.at(
                dataset.annotations,
                f"image {record.id} names {record.path}, which is not a picture; it is not "
                "copied: remove the entry, or put the picture there",
            )


def _moved(partial: Path, place: Path, out: Path, folder: Path, to: Format) -> tuple[Path, ...]:
    """Give everything its final name. The annotation file comes last: where it is, the rest is there too."""
    if to in ("voc", "yolo"):
        os.rename(partial, out)
        return (out,)
    written = [out]
    if place.is_dir():
        os.rename(place, folder)
        written.append(folder)
    for path in sorted(partial.iterdir(), key=lambda path: path.name == out.name):
        os.rename(path, out.parent / path.name)
        if path.name != out.name:
            written.append(out.parent / path.name)
    return tuple(written)
