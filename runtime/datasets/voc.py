"""Pascal VOC: one XML file for each picture.

The VOC development kit counts pixels from 1 and includes both ends: a box xmin=1 xmax=W covers the whole width. As
edges that is x1 = xmin - 1, x2 = xmax (and the same along y). Most tools write edges from 0, which need no change. A
coordinate below 1 or a fraction proves an origin of 0 for a whole set (`runtime.datasets.voc_origin`).
`difficult` objects are not learned, and not counted as missed: they become ignored (crowd) boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from runtime.datasets.annotations import (
    BAD_FLAG,
    BAD_ROTATION,
    BORROWED,
    FROM_0,
    NO_ANNOTATION,
    NO_BBOX,
    NO_CLASS,
    OTHER_CLASS,
    TURNED,
    BrokenEntry,
    CocoDataset,
    DatasetError,
    Problem,
    Problems,
    Row,
    choose_classes,
    clipped_box,
    flag_of,
    left_out,
    make_record,
    nearest_class,
    read_entries,
    rotation_of,
    turned_bounds,
)
from runtime.datasets.voc_origin import Bounds, bounds_of, counts_from, numbers_of, of_devkit, proves_0, rotated_bounds
from runtime.datasets.voc_places import VocPlaces, voc_places
from runtime.datasets.xml_file import read_xml
from runtime.images.image_header import image_size


class _Object(NamedTuple):
    number: int
    """Position in its file, from 1."""
    name: str
    bounds: Bounds | None
    """xmin, ymin, xmax, ymax as written; the edges before the turn where it is a <robndbox>."""
    rotation: str | float | None
    """In degrees, by which the box is turned about its middle, as CVAT writes it for each box; None without."""
    is_rotated_box: bool
    """Whether it is a <robndbox>, roLabelImg's: a middle and two sides, which count from 0 in every set."""
    difficult: bool | None
    """None where the file says neither 0 nor 1."""
    proves_0: bool
    """Whether it proves that its set counts from 0 (`runtime.datasets.voc_origin`)."""
    where: str


class _Entry(NamedTuple):
    image_id: int
    path: Path
    size_hw: tuple[int, int]
    objects: tuple[_Object, ...]
    borrowed: str
    """The <filename>, if it names the picture of another .xml and this .xml's own picture was taken; else ''."""


Origin = Literal["auto", 0, 1]


def read_voc(
    annotations: Path,
    images: Path | None,
    classes: Sequence[str] | None,
    check_files: bool,
    allow_absent: bool,
    origin: Origin = "auto",
) -> CocoDataset:
    """Read a folder of .xml, a VOC folder (Annotations/, JPEGImages/), or a list of names as in ImageSets/Main.

    Image ids count from 1 in the order of the files, or of the list. Labels follow the sorted class names, or
    `classes`. `origin` is the number that coordinates count from. Arguments and errors are those of `read_dataset`.
    """
    places = voc_places(annotations, images)
    files, pictures = places.files, places.pictures
    problems: list[Problem] = []
    entries = read_entries(files, lambda file, number: _read_entry(file, number, places), problems, check_files)
    if not entries:
        raise DatasetError.at(
            annotations,
            f"none of its {len(files)} annotations can be used; the first: {problems[0].reason}, "
            f"{problems[0].detail} (pictures are looked for in {pictures}; name their folder as images "
            "where they are elsewhere)",
        )
    known = sorted({item.name for entry in entries for item in entry.objects if item.name})
    if not known and classes is None:
        raise DatasetError.at(annotations, f"there is no object in its {len(entries)} images, so it has no classes")
    names, absences = choose_classes(known, classes, str(annotations), allow_absent=True)
    if len(absences) == len(names) and known and not allow_absent:
        raise DatasetError.at(annotations, f"it has none of the classes; {nearest_class(names[0], known)}")
    problems += absences
    label_of = {name: label for label, name in enumerate(names)}
    proofs = (item.where for entry in entries for item in entry.objects if item.proves_0)
    counting = counts_from(proofs, () if places.is_complete else places.other_files(), origin)
    records = tuple(
        make_record(e.image_id, e.path, *e.size_hw, _rows(e, counting.first, label_of, classes is not None, problems))
        for e in entries
    )
    if places.is_complete:
        annotated = {entry.path for entry in entries}
        unread = [path for path in places.unannotated() if path not in annotated]
        problems += [*(Problem(NO_ANNOTATION, None, detail=str(path)) for path in unread), *left_out(places.left_out)]
    problems += [Problem(FROM_0, None, detail=where) for where in counting.against]
    problems += [Problem(BORROWED, entry.image_id, detail=entry.borrowed) for entry in entries if entry.borrowed]
    ids = tuple(range(1, len(names) + 1))
    all_problems = Problems(tuple(problems), (counting.note,) if counting.note else ())
    return CocoDataset(annotations, pictures, names, ids, records, all_problems, tuple(files), counting.first)


def _read_entry(file: Path, image_id: int, places: VocPlaces) -> _Entry:
    root = read_xml(file)
    if root.tag != "annotation":
        raise BrokenEntry.at(file, f"expected <annotation> as its first element, got <{root.tag}>")
    file_name = (root.findtext("filename") or "").strip()
    path = places.picture(file, file_name)
    sides = numbers_of(root, "size", ("height", "width")) or ()
    pixels = [int(side) for side in sides if math.isfinite(side) and side >= 1]
    borrowed = path.stem == file.stem and places.is_borrowed(file, file_name)
    # Labeling tools write a size of 0, or none at all: then it is read from the picture.
    size_hw = (pixels[0], pixels[1]) if len(pixels) == 2 and not borrowed else image_size(path)
    from_devkit = of_devkit(root)
    objects = []
    for number, element in enumerate(root.findall("object"), start=1):
        name = (element.findtext("name") or "").strip()
        attributes = {a.findtext("name"): a.findtext("value") for a in element.findall("attributes/attribute")}
        bounds: Bounds | None = bounds_of(element)
        rotation: str | float | None = attributes.get("rotation")
        rotated_box = rotated_bounds(element) if bounds is None else None
        if rotated_box is not None:
            bounds, rotation = rotated_box
        rotated = element.find("bndbox") is None and element.find("robndbox") is not None
        tag, *keys = ("robndbox cx cy w h angle" if rotated else "bndbox xmin ymin xmax ymax").split()
        numbers = ", ".join(f"{key} {element.findtext(f'{tag}/{key}')!r}" for key in keys)
        where = f"{file}: object {number} ({name or 'no name'}): {numbers}"
        difficult, is_proof = flag_of(element.findtext("difficult")), not from_devkit and proves_0(element)
        objects.append(_Object(number, name, bounds, rotation, rotated_box is not None, difficult, is_proof, where))
    return _Entry(image_id, path, size_hw, tuple(objects), f"{file}: <filename> {file_name}" if borrowed else "")


def _rows(entry: _Entry, first: int, label_of: dict[str, int], chosen: bool, problems: list[Problem]) -> list[Row]:
    """The usable objects; `first` is the number that xmin and ymin count from."""
    rows = []
    for item in entry.objects:
        if item.name not in label_of:
            reason = OTHER_CLASS if chosen and item.name else NO_CLASS
            problems.append(Problem(reason, entry.image_id, item.number, item.where))
            continue
        if item.bounds is None:
            problems.append(Problem(NO_BBOX, entry.image_id, item.number, item.where))
            continue
        xmin, ymin, xmax, ymax = item.bounds
        shift = 0 if item.is_rotated_box else first
        corners = (xmin - shift, ymin - shift, xmax, ymax)
        degrees = rotation_of(item.rotation)
        turned = bool(degrees) and math.isfinite(sum(corners)) and xmax > xmin and ymax > ymin
        box, reason = clipped_box(*(turned_bounds(corners, degrees or 0.0) if turned else corners), *entry.size_hw)
        if reason:
            problems.append(Problem(reason, entry.image_id, item.number, item.where))
        if box is not None:
            rows.append(Row(box, label_of[item.name], bool(item.difficult)))
            if turned:
                problems.append(Problem(TURNED, entry.image_id, item.number, f"{item.where}, rotation {degrees:g}"))
            elif degrees is None:
                where = f"{item.where}, rotation {item.rotation!r:.60}"
                problems.append(Problem(BAD_ROTATION, entry.image_id, item.number, where))
            if item.difficult is None:
                problems.append(Problem(BAD_FLAG, entry.image_id, item.number, f"{item.where}, difficult"))
    return rows
