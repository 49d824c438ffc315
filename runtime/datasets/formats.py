"""The format of annotations, by content; formats that isodet does not read are refused by name."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from runtime.datasets import foreign
from runtime.datasets.annotations import DatasetError, annotation_bytes
from runtime.datasets.picture_list import list_lines, names_pictures
from runtime.datasets.table import is_table
from runtime.datasets.voc_places import annotations_of_list, xml_in
from runtime.datasets.yolo_places import is_label_file
from runtime.images.picture_files import files_in, is_hidden, list_pictures

Format = Literal["coco", "voc", "yolo", "list"]
FORMATS: tuple[Format, ...] = ("coco", "voc", "yolo", "list")

_SPLITS = {"train": ("train",), "val": ("valid", "val", "validation"), "test": ("test",)}
_FILE_NAME = re.compile(rb'"(?:file_name|filename)"\s*:\s*("(?:[^"\\]|\\.)*")')
_TABLES, _TF_RECORDS = (".csv", ".tsv"), (".tfrecord", ".record", ".tfrecords")


def tell_format(path: Path) -> Format:
    """The format of an annotation file or folder, by its content. Raises `DatasetError` for none, or more than one."""
    if os.path.isdir(path):
        return _folder_format(path)
    head = annotation_bytes(path, 4096)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        head = head.decode("utf-16", errors="ignore").encode()
    head = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    suffix = path.suffix.lower()
    if head.startswith(b"{") or suffix == ".json":
        return "list" if head.startswith(b"[") else "coco"
    if head.startswith(b"["):
        if suffix == ".cfg":
            raise DatasetError.at(path, foreign.DARKNET_CFG)
        return "list"
    if head.startswith(b"<"):
        if _is_cvat(head):
            raise DatasetError.at(path, foreign.CVAT_XML)
        raise DatasetError.at(path, "one file of Pascal VOC annotations; name the folder that holds all of them")
    if suffix in (".yaml", ".yml", ".data"):
        return "yolo"
    if suffix == ".txt":
        return _list_format(path)
    if suffix in _TABLES:
        if suffix == ".csv" and is_table(path):
            return "list"
        raise DatasetError.at(path, foreign.TABLE)
    if suffix in _TF_RECORDS:
        raise DatasetError.at(path, foreign.TFRECORD)
    raise DatasetError.at(
        path,
        "not an annotation file that is known: expected COCO JSON, a JSON list, a folder of Pascal VOC .xml, "
        "or a YOLO data.yaml",
    )


def _list_format(path: Path) -> Format:
    if path.parent.name == "Main" or os.path.isdir(path.parent.parent.parent / "Annotations"):
        return "voc"
    lines = list_lines(path)
    if names_pictures(lines) or not lines:
        return "yolo"
    if annotations_of_list(path, lines) is not None:
        return "voc"
    if is_label_file(path):
        raise DatasetError.at(path, "the labels of one picture; name the folder that holds all of them, or a data.yaml")
    if any(os.path.isfile(path.parent / line) for line in lines[:20]):
        return "yolo"
    raise DatasetError.at(
        path,
        f"lists names, not pictures (the first: {lines[0]!r}), and no .xml of these names lies beside it; a "
        "list of Pascal VOC lies in ImageSets/Main/ beside Annotations/, or in the folder above the .xml files",
    )


def _folder_format(path: Path) -> Format:
    if os.path.isdir(path / "Annotations") and (xml_in(path / "Annotations") or not _json_files(path)):
        return "voc"
    if os.path.isfile(path / "data.yaml") or os.path.isdir(path / "labels"):
        return "yolo"
    files = files_in(path)
    xml_files, txt_files, json_files = (_with_suffix(files, suffix) for suffix in (".xml", ".txt", ".json"))
    stems = {p.with_suffix("") for p in [*xml_files, *list_pictures(files).pictures]}
    xml = next(iter(xml_files), None)
    labels = (p for p in txt_files if p.name != "classes.txt" and (p.with_suffix("") in stems or is_label_file(p)))
    txt = next(labels, None)
    if xml is not None and txt is not None:
        raise DatasetError.at(
            path,
            f"it holds {xml.name} and {txt.name}, Pascal VOC and YOLO; say which is meant with format: voc "
            "or format: yolo (trainer new: --format)",
        )
    if xml is not None:
        if _is_cvat(annotation_bytes(xml, 4096)):
            raise DatasetError.at(xml, foreign.CVAT_XML)
        return "voc"
    if txt is not None or os.path.isfile(path / "classes.txt"):
        return "yolo"
    if any(_json_files(place) for place in _json_places(path, "train") + _json_places(path, "val")):
        return "coco"
    if json_files and (tool := _tool_of(json_files[0])):
        raise DatasetError.at(json_files[0], tool)
    if _tables(path):
        return "list"
    for suffixes, reason in ((_TABLES, foreign.TABLE), (_TF_RECORDS, foreign.TFRECORD)):
        for file in _with_suffix(files, *suffixes)[:1]:
            raise DatasetError.at(file, reason)
    raise DatasetError.at(
        path, "a folder without annotations: expected Pascal VOC .xml or YOLO .txt files in it, or a COCO .json"
    )


def _is_cvat(head: bytes) -> bool:
    return re.search(rb"<annotations[\s>]", head) is not None


def _tool_of(path: Path) -> str:
    try:
        return foreign.foreign_json(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return ""  # not JSON, so not of a tool


def _with_suffix(files: Sequence[Path], *suffixes: str) -> list[Path]:
    return [path for path in files if path.suffix.lower() in suffixes]


# ---------------------------------------------------------------------------------------------
# JSON files of a folder


def json_of_folder(path: Path, split: str) -> Path:
    """The COCO file, JSON list or table of a folder: the only one in it, in its annotations/, or in its folder of
    `split`; of several, the one with the split in its name. Raises `DatasetError` for none, or for several.
    """
    for place in _json_places(path, split):
        files = _json_files(place)
        if len(files) > 1:
            words = _SPLITS.get(split, (split,))
            of_split = [file for file in files if set(re.split(r"[^a-z]+", file.stem.lower())) & set(words)]
            if len(of_split) != 1:
                names = ", ".join(file.name for file in files[:5])
                raise DatasetError.at(place, f"it holds {len(files)} COCO files ({names}); name the one that is meant")
            files = of_split
        if files:
            return files[0]
    if len(tables := _tables(path)) == 1:
        return tables[0]
    raise DatasetError.at(path, f"expected one COCO .json in this folder, or in its folder for {split}; there is none")


def _json_places(path: Path, split: str) -> list[Path]:
    return [path, path / "annotations", path / "Annotations", *(path / name for name in _SPLITS.get(split, ()))]


def _json_files(place: Path) -> list[Path]:
    """The files of a folder that are COCO object annotations or JSON lists of {filename, ann}."""
    if not os.path.isdir(place):
        return []
    files = [p for p in place.iterdir() if p.suffix.lower() == ".json" and not is_hidden(p.name) and os.path.isfile(p)]
    return [path for path in sorted(files) if _is_annotations(path.read_bytes())]


def _tables(place: Path) -> list[Path]:
    return [path for path in sorted(place.glob("*.csv")) if not is_hidden(path.name) and is_table(path)]


def _is_annotations(data: bytes) -> bool:
    coco = all(key in data for key in (b'"images"', b'"annotations"', b'"categories"'))
    return coco or (data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[" and b'"ann"' in data)


def pictures_of_json(path: Path) -> Path:
    """The folder that file names in a JSON file are relative to.

    It is the folder named as the file, else the file's own; or another usual place (images/ in it or beside it, the
    folder above) that has the first picture where these have not.
    """
    usual = path.with_suffix("") if os.path.isdir(path.with_suffix("")) else path.parent
    try:
        with path.open("rb") as file:
            match = _FILE_NAME.search(file.read(1 << 22))
        name = json.loads(match[1]) if match else None
    except (OSError, ValueError):
        return usual  # the reader reports what is wrong with the file
    if not name:
        return usual
    outer = path.parent.parent
    places = [usual, path.parent, path.parent / "images", outer / "images", outer]
    places.append(outer / "images" / path.stem.removeprefix("instances_"))
    return next((place for place in places if os.path.isfile(place / name)), usual)
