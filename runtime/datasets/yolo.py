"""YOLO: one text file for each picture, a line `class x_center y_center width height` for each object.

The four numbers are shares of the upright picture's sides. A line of a polygon (class x1 y1 x2 y2 x3 y3 ...) counts as
its bounding box. A picture without a label file, or with an empty one, has no objects. Ignored regions do not exist.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from runtime.header import image_size
from runtime.image import IMAGE_SUFFIXES, ImageError
from runtime.records import (
    ABSENT_CLASS,
    BROKEN_ENTRY,
    NO_BBOX,
    NO_CLASS,
    NO_FILE,
    NO_SIZE,
    NOT_FINITE,
    OTHER_CLASS,
    CocoDataset,
    DatasetError,
    Problem,
    Problems,
    Row,
    choose_classes,
    clipped_box,
    make_record,
    read_class_names,
)

_NAMES = ("classes.txt", "obj.names")


@dataclass(frozen=True)
class _Layout:
    pairs: tuple[tuple[Path, Path], ...]
    """(picture, label file that it may have)."""
    folder: Path
    known: Sequence[str]
    named_by: tuple[Path, ...]


def read_yolo(
    annotations: Path, images: Path | None, classes: Sequence[str] | None, split: str, allow_absent: bool
) -> CocoDataset:
    """Read a data.yaml (its `split`), a folder of label files, or a text file that lists pictures.

    Image ids count from 1 in the order of paths. Every picture is opened for its size. Arguments and errors are those
    of `read_dataset`.
    """
    if (annotations / "data.yaml").is_file():
        annotations = annotations / "data.yaml"
    if annotations.suffix.lower() in (".yaml", ".yml"):
        layout = _data_yaml(annotations, images, split)
    elif annotations.is_dir():
        layout = _label_folder(annotations, images, classes)
    else:
        pictures = tuple((path, _label_file(path)) for path in _listed(annotations, annotations.parent))
        layout = _Layout(pictures, images or annotations.parent, *_class_names(annotations, classes))
    if not layout.pairs:
        raise DatasetError(f"{annotations}: expected pictures in {layout.folder}; there is none")
    names, absent = choose_classes(layout.known, classes, str(annotations), allow_absent)
    problems = [Problem(ABSENT_CLASS, None, detail=repr(name)) for name in absent]
    label_of = {i: names.index(name) for i, name in enumerate(layout.known) if name in names}
    records, read = [], []
    for image_id, (picture, label_file) in enumerate(layout.pairs, start=1):
        try:
            height, width = image_size(picture)
        except ImageError as error:
            problems.append(Problem(NO_SIZE if os.path.isfile(picture) else NO_FILE, image_id, detail=str(error)))
            continue
        rows: list[Row] = []
        if os.path.isfile(label_file):
            read.append(label_file)
            try:
                text = label_file.read_text(encoding="utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                problems.append(Problem(BROKEN_ENTRY, image_id, detail=f"{label_file}: {error}"))
                continue
            for number, line in enumerate(text.splitlines(), start=1):
                if not line.strip():
                    continue
                row, reason = _row(line, height, width, len(layout.known), label_of)
                if reason:
                    problems.append(Problem(reason, image_id, number, f"{label_file}, line {number}: {line:.80}"))
                if row is not None:
                    rows.append(row)
        records.append(make_record(image_id, picture, height, width, rows))
    if not records:
        raise DatasetError(
            f"{annotations}: none of its {len(layout.pairs)} images can be used; the first: {problems[-1].detail}"
        )
    ids = tuple(range(1, len(names) + 1))
    files = (*layout.named_by, *read) or (annotations,)
    return CocoDataset(annotations, layout.folder, names, ids, tuple(records), Problems(tuple(problems)), files)


def _row(line: str, height: int, width: int, classes: int, label_of: Mapping[int, int]) -> tuple[Row | None, str]:
    """The object of a line, or None; and the reason where it is skipped or clipped."""
    try:
        first, *values = (float(word) for word in line.split())
    except ValueError:
        return None, NO_BBOX
    if len(values) == 4:
        x, y, w, h = values
        shares = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        if w <= 0 or h <= 0:  # a negative side would come out right again as a polygon's
            shares = (x, y, x, y)
    elif len(values) >= 6 and len(values) % 2 == 0:
        if not all(map(math.isfinite, values)):  # min and max pass over NaN
            return None, NOT_FINITE
        shares = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    else:
        return None, NO_BBOX
    if not math.isfinite(first) or first != int(first) or not 0 <= first < classes:
        return None, NO_CLASS
    if int(first) not in label_of:
        return None, OTHER_CLASS
    # Labels have six decimals, as a rule.
    tolerance = max(1e-3, 2e-6 * max(height, width))
    x1, y1, x2, y2 = shares
    box, reason = clipped_box(x1 * width, y1 * height, x2 * width, y2 * height, height, width, tolerance)
    if box is None:
        return None, reason
    return Row(box, label_of[int(first)], False, (box[2] - box[0]) * (box[3] - box[1])), reason


# ---------------------------------------------------------------------------------------------
# where things are


def _data_yaml(path: Path, images: Path | None, split: str) -> _Layout:
    import yaml

    from runtime.yaml_files import parse_yaml

    if images is not None:
        raise DatasetError(f"{path}: it names its own images; leave the images folder out")
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot read this file: {error}") from None
    except yaml.YAMLError as error:
        raise DatasetError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or "names" not in content:
        raise DatasetError(f"{path}: expected a YOLO data.yaml with names and a key for each split")
    known = _names_of(content["names"], path)
    entries = content.get(split)
    if not entries:
        there = [key for key in ("train", "val", "test") if content.get(key)]
        raise DatasetError(f"{path}: missing key '{split}' (it has: {', '.join(there) or 'no split'})")
    root = path.parent / str(content.get("path") or ".")
    if not os.path.isdir(root):
        root = path.parent  # `path` is often that of the machine that wrote it
    pairs: list[tuple[Path, Path]] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        place = root / str(entry)
        if not os.path.exists(place) and str(entry).startswith("../"):
            place = root / str(entry)[3:]  # as Roboflow writes it
        if os.path.isdir(place):
            labels = _swapped(place, "images", "labels") or place
            pairs += [(p, (labels / p.relative_to(place)).with_suffix(".txt")) for p in pictures_in(place)]
        elif os.path.isfile(place):
            pairs += [(picture, _label_file(picture)) for picture in _listed(place, root)]
        else:
            raise DatasetError(f"{path}: {split}: no such folder or list of pictures: {place}")
    return _Layout(tuple(pairs), root, known, (path,))


def _names_of(names: Any, path: Path) -> list[str]:
    if isinstance(names, dict):
        if not all(type(key) is int for key in names) or set(names) != set(range(len(names))):
            got = f"{list(names)!r:.200}"
            raise DatasetError(f"{path}: names: expected numbers from 0 to {len(names) - 1} without gaps, got {got}")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DatasetError(f"{path}: names: expected a list of class names, or numbers and names, got {names!r:.80}")
    if not all(name is None or isinstance(name, (str, int, float, date)) for name in names):
        raise DatasetError(f"{path}: names: expected text for each class, got {names!r:.200}")
    return [str(name) for name in names]  # YAML takes names such as 1 and no for something else


def _label_folder(folder: Path, images: Path | None, classes: Sequence[str] | None) -> _Layout:
    labels = folder / "labels" if (folder / "labels").is_dir() else folder
    if images is None:
        beside = _swapped(labels, "labels", "images")
        images = beside if beside is not None and beside.is_dir() else labels
    pictures = pictures_in(images)
    pairs = tuple((p, (labels / p.relative_to(images)).with_suffix(".txt")) for p in pictures)
    if pairs and not any(os.path.isfile(label_file) for _, label_file in pairs):
        raise DatasetError(
            f"{folder}: none of the {len(pairs)} pictures in {images} has a label file there (the first would be "
            f"{pairs[0][1]}); check the images folder"
        )
    return _Layout(pairs, images, *_class_names(folder, classes))


def _class_names(place: Path, classes: Sequence[str] | None) -> tuple[Sequence[str], tuple[Path, ...]]:
    """Class names, and the file that they come from: in the folder, or in one of the two above it."""
    folder = place if place.is_dir() else place.parent
    for candidate in (folder, folder / "labels", *list(folder.resolve().parents)[:2]):
        for name in _NAMES:
            if (candidate / name).is_file():
                return read_class_names(candidate / name), (candidate / name,)
    if classes is not None:
        return classes, ()
    raise DatasetError(
        f"{place}: its labels are numbers; write their class names, one a line, into classes.txt there, or give the "
        "classes"
    )


def pictures_in(folder: Path) -> list[Path]:
    """All pictures below a folder, in the order of their paths."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


def _listed(path: Path, root: Path) -> list[Path]:
    """The pictures that a text file names, relative to itself or to `root`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot read this list of pictures: {error}") from None
    found = []
    for line in (text.strip() for text in lines):
        if line:
            places: Iterator[Path] = (base / line for base in (path.parent, root))
            found.append(next((place for place in places if os.path.isfile(place)), path.parent / line))
    return found


def _label_file(picture: Path) -> Path:
    """The label file of a picture: under labels/ for images/, else beside it."""
    swapped = _swapped(picture, "images", "labels")
    return (swapped if swapped is not None else picture).with_suffix(".txt")


def _swapped(path: Path, old: str, new: str) -> Path | None:
    """`path` with the last part that is called `old` called `new`; None where there is none."""
    parts = list(path.parts)
    if old not in parts:
        return None
    last = len(parts) - 1 - parts[::-1].index(old)
    return Path(*parts[:last], new, *parts[last + 1 :])
