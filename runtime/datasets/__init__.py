"""Annotated data sets: one reader for each format, and `read_dataset`, which tells the formats apart by content.

| format | what is named | pictures, where no folder is given |
|---|---|---|
| coco | a JSON object with images, annotations, categories | the folder named as the file, else the file's own |
| list | a JSON list of {filename, width, height, ann} | the same |
| voc | a folder of .xml, a VOC folder, its ImageSets/Main/train.txt | JPEGImages by Annotations, else with the .xml |
| yolo | data.yaml, or a folder of labels with classes.txt | images/ for labels/, else with the .txt |
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Literal

from runtime.card import sha256_file
from runtime.coco import read_coco
from runtime.datasets.plain import read_list
from runtime.datasets.voc import read_voc
from runtime.datasets.yolo import read_yolo
from runtime.records import CocoDataset, DatasetError

Format = Literal["coco", "voc", "yolo", "list"]
FORMATS: tuple[Format, ...] = ("coco", "voc", "yolo", "list")


def read_dataset(
    annotations: str | PathLike[str],
    images: str | PathLike[str] | None = None,
    classes: Sequence[str] | None = None,
    format: Format | Literal["auto"] = "auto",
    split: str = "val",
    check_files: bool = True,
    allow_absent: bool = False,
) -> CocoDataset:
    """Read the annotations of any format, told by content unless `format` names it.

    `images` is the folder that file names are relative to; the table above says which is taken without it.
    `classes` selects and orders the labels. `split` chooses what a YOLO data.yaml names by train, val and test; other
    formats have one split in a file. `check_files` leaves out, and lists, images whose file is missing. A class that a
    COCO, YOLO or list file does not know is an error unless `allow_absent`; VOC files know only the classes of their
    objects, so there it is listed in `problems`, and an error only where none of `classes` has an object.

    Raises `DatasetError` for what cannot be used at all; what is wrong with one image is in `problems`.
    """
    path = Path(annotations)
    folder = None if images is None else Path(images)
    if folder is not None and not folder.is_dir():
        raise DatasetError(f"{folder}: no such images folder (file names in {path} are relative to it)")
    kind = tell_format(path) if format == "auto" else format
    if kind == "voc":
        return read_voc(path, folder, classes, check_files, allow_absent)
    if kind == "yolo":
        return read_yolo(path, folder, classes, split, allow_absent)
    if folder is None:
        folder = path.with_suffix("") if path.with_suffix("").is_dir() else path.parent
    if kind == "list":
        return read_list(path, folder, classes, check_files, allow_absent)
    return read_coco(path, folder, classes, check_files, allow_absent)


def tell_format(path: Path) -> Format:
    """The format of an annotation file or folder, by its content. Raises `DatasetError` where it is none, or two."""
    if path.is_dir():
        return _folder_format(path)
    try:
        with path.open("rb") as file:
            head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such annotation file") from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot read this annotation file: {error.strerror}") from None
    if head.startswith(b"{") or path.suffix.lower() == ".json":
        return "list" if head.startswith(b"[") else "coco"
    if head.startswith(b"["):
        return "list"
    if head.startswith(b"<"):
        raise DatasetError(f"{path}: one file of Pascal VOC annotations; name the folder that holds all of them")
    if path.suffix.lower() in (".yaml", ".yml"):
        return "yolo"
    if path.suffix.lower() == ".txt":
        voc = path.parent.name == "Main" or (path.parent.parent.parent / "Annotations").is_dir()
        return "voc" if voc else "yolo"
    raise DatasetError(
        f"{path}: not an annotation file that is known: expected COCO JSON, a JSON list, a folder of Pascal VOC .xml, "
        "or a YOLO data.yaml"
    )


def _folder_format(path: Path) -> Format:
    if (path / "Annotations").is_dir():
        return "voc"
    if (path / "data.yaml").is_file() or (path / "labels").is_dir():
        return "yolo"
    xml = next(path.rglob("*.xml"), None)
    txt = next((p for p in path.rglob("*.txt") if p.name != "classes.txt"), None)
    if xml is not None and txt is not None:
        raise DatasetError(
            f"{path}: it holds {xml.name} and {txt.name}, Pascal VOC and YOLO; say which is meant with format: voc "
            "or format: yolo"
        )
    if xml is not None:
        return "voc"
    if txt is not None or (path / "classes.txt").is_file():
        return "yolo"
    raise DatasetError(f"{path}: a folder without annotations: expected Pascal VOC .xml or YOLO .txt files in it")


def fingerprint(dataset: CocoDataset) -> str:
    """SHA-256 of the annotations: of their file, or of the names and hashes of all their files."""
    if not dataset.files:
        return sha256_file(dataset.annotations)
    digest = hashlib.sha256()
    for path in dataset.files:
        try:
            content = sha256_file(path)
        except OSError:  # reading left it out, too; its coming back is a change
            content = "unreadable"
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()
