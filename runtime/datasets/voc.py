"""Pascal VOC: one XML file for each picture.

Coordinates are pixel indices that begin at 1 and include both ends, as the VOC development kit counts: a box
xmin=1 xmax=W covers the whole width. As edges that is x1 = xmin - 1, x2 = xmax (and the same along y).
`difficult` objects are neither to be learned nor counted as missed: they become ignored (crowd) boxes.
"""

from __future__ import annotations

import math
import os
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from runtime.header import image_size
from runtime.image import IMAGE_SUFFIXES, ImageError
from runtime.records import (
    ABSENT_CLASS,
    BROKEN_ENTRY,
    NO_BBOX,
    NO_CLASS,
    NO_FILE,
    NO_SIZE,
    OTHER_CLASS,
    CocoDataset,
    DatasetError,
    Problem,
    Problems,
    Row,
    choose_classes,
    clipped_box,
    make_record,
    nearest_class,
)


class _Object(NamedTuple):
    number: int
    """Position in its file, from 1."""
    name: str
    xyxy: tuple[float, float, float, float] | None
    difficult: bool
    where: str


class _Entry(NamedTuple):
    image_id: int
    path: Path
    size_hw: tuple[int, int]
    objects: tuple[_Object, ...]


class _Broken(ValueError):
    """An XML file of which nothing can be used."""


def read_voc(
    annotations: Path, images: Path | None, classes: Sequence[str] | None, check_files: bool, allow_absent: bool
) -> CocoDataset:
    """Read a folder of .xml, a VOC folder (Annotations/, JPEGImages/), or a list of names as in ImageSets/Main.

    Image ids count from 1 in the order of names (of the list, where it is one). Labels follow the sorted class names,
    or `classes`. Arguments and errors are those of `read_dataset`.
    """
    files, folder, pictures = _files(annotations, images)
    problems: list[Problem] = []
    entries = []
    for image_id, file in enumerate(files, start=1):
        try:
            entry = _read_entry(file, image_id, folder, pictures)
        except _Broken as error:
            problems.append(Problem(BROKEN_ENTRY, image_id, detail=f"{file}: {error}"))
        except ImageError as error:
            # A missing picture is told as such, whether or not the XML has its size.
            reason = NO_SIZE if os.path.isfile(error.path) else NO_FILE
            problems.append(Problem(reason, image_id, detail=str(error)))
        else:
            if check_files and not os.path.isfile(entry.path):
                problems.append(Problem(NO_FILE, image_id, detail=str(entry.path)))
                continue
            entries.append(entry)
    if not entries:
        raise DatasetError(
            f"{annotations}: none of its {len(files)} annotations can be used; the first: {problems[0].reason}, "
            f"{problems[0].detail} (pictures are looked for in {pictures}; name their folder as images "
            "where they are elsewhere)"
        )
    known = sorted({item.name for entry in entries for item in entry.objects if item.name})
    if not known and classes is None:
        raise DatasetError(f"{annotations}: there is no object in its {len(entries)} images, so it has no classes")
    names, absent = choose_classes(known, classes, str(annotations), allow_absent=True)
    if len(absent) == len(names) and known and not allow_absent:
        raise DatasetError(f"{annotations}: it has none of the classes; {nearest_class(names[0], known)}")
    problems += [Problem(ABSENT_CLASS, None, detail=repr(name)) for name in absent]
    label_of = {name: label for label, name in enumerate(names)}
    records = tuple(
        make_record(e.image_id, e.path, *e.size_hw, _rows(e, label_of, classes is not None, problems)) for e in entries
    )
    return CocoDataset(
        annotations, pictures, names, tuple(range(1, len(names) + 1)), records, Problems(tuple(problems)), tuple(files)
    )


def _files(annotations: Path, images: Path | None) -> tuple[list[Path], Path, Path]:
    """The XML files, the folder that they are in, and the folder of the pictures."""
    if annotations.is_dir():
        folder = annotations / "Annotations" if (annotations / "Annotations").is_dir() else annotations
        files = sorted(folder.rglob("*.xml"))
        if not files:
            raise DatasetError(f"{folder}: expected .xml files of Pascal VOC in it; there is none")
    else:
        # VOC2012/ImageSets/Main/train.txt
        folder = annotations.resolve().parent.parent.parent / "Annotations"
        if not folder.is_dir():
            raise DatasetError(f"{annotations}: expected ImageSets/Main/NAME.txt beside Annotations/; no {folder}")
        files = [folder / f"{name}.xml" for name in _names(annotations)]
    beside = folder.parent / "JPEGImages"
    pictures = images if images is not None else beside if beside.is_dir() else folder
    return files, folder, pictures


def _names(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot read this list of names: {error}") from None
    names = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if len(line.split()) > 1:
            raise DatasetError(
                f"{path}, line {number}: expected one name of an image, got {line.strip()!r}; the lists of single "
                "classes (aeroplane_train.txt) are not for detection, take train.txt"
            )
        names.append(line.strip())
    if not names:
        raise DatasetError(f"{path}: expected names of images, one a line; it has none")
    return names


def _read_entry(file: Path, image_id: int, folder: Path, pictures: Path) -> _Entry:
    try:
        root = ET.parse(file).getroot()
    except ET.ParseError as error:
        raise _Broken(f"not well-formed XML: {error}") from None
    except OSError as error:
        raise _Broken(f"cannot be read: {error.strerror}") from None
    except (LookupError, ValueError) as error:  # an encoding that expat, or Python, does not know
        raise _Broken(f"its encoding cannot be read: {error}") from None
    if root.tag != "annotation":
        raise _Broken(f"expected <annotation> as its first element, got <{root.tag}>")
    path = _picture(file, (root.findtext("filename") or "").strip(), folder, pictures)
    sides = [_number(root.findtext(f"size/{key}")) for key in ("height", "width")]
    whole = [int(side) for side in sides if side is not None and math.isfinite(side) and side >= 1]
    # Labelling tools write a size of 0, or none at all; then the picture itself is asked.
    size_hw = (whole[0], whole[1]) if len(whole) == 2 else image_size(path)
    objects = []
    for number, element in enumerate(root.findall("object"), start=1):
        name = (element.findtext("name") or "").strip()
        ends = {key: element.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")}
        where = f"{file}: object {number} ({name or 'no name'}): " + ", ".join(f"{k} {v!r}" for k, v in ends.items())
        values = [_number(text) for text in ends.values()]
        xmin, ymin, xmax, ymax = values
        xyxy = None
        if xmin is not None and ymin is not None and xmax is not None and ymax is not None:
            xyxy = (xmin - 1, ymin - 1, xmax, ymax)
        objects.append(_Object(number, name, xyxy, _number(element.findtext("difficult")) == 1, where))
    return _Entry(image_id, path, size_hw, tuple(objects))


def _picture(file: Path, file_name: str, folder: Path, pictures: Path) -> Path:
    """The picture of an XML file: by its <filename>, else by the XML's own name, which copies often keep apart."""
    nested = file.parent.relative_to(folder)
    stem = pictures / nested / file.stem
    named = [pictures / file_name, pictures / nested / file_name] if file_name else []
    for path in (*named, *(stem.with_name(stem.name + suffix) for suffix in (*IMAGE_SUFFIXES, ".JPG", ".PNG"))):
        if os.path.isfile(path):
            return path
    return named[0] if named else stem.with_name(stem.name + ".jpg")


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _rows(entry: _Entry, label_of: dict[str, int], chosen: bool, problems: list[Problem]) -> list[Row]:
    rows = []
    for item in entry.objects:
        if item.name not in label_of:
            reason = OTHER_CLASS if chosen and item.name else NO_CLASS
            problems.append(Problem(reason, entry.image_id, item.number, item.where))
            continue
        box, reason = (None, NO_BBOX) if item.xyxy is None else clipped_box(*item.xyxy, *entry.size_hw)
        if reason:
            problems.append(Problem(reason, entry.image_id, item.number, item.where))
        if box is not None:
            area = (box[2] - box[0]) * (box[3] - box[1])
            rows.append(Row(box, label_of[item.name], item.difficult, area))
    return rows
