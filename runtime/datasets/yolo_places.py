"""The places of a YOLO data set: its pictures, their label files, and the names of its classes."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from runtime.datasets.annotations import DatasetError, read_class_names
from runtime.datasets.picture_list import listed_pictures
from runtime.datasets.yolo_files import (
    class_names,
    entries_of,
    key_point_numbers,
    key_points_beside,
    moved_place,
    names_of,
    place_of,
    read_data_yaml,
    read_obj_data,
)
from runtime.images.picture_files import files_in, left_out_text, list_pictures


@dataclass(frozen=True)
class YoloPlaces:
    """The files of a data set."""

    pairs: Sequence[tuple[Path, Path]]
    """(picture, label file that it may have)."""
    folder: Path
    known: Sequence[str]
    """Class names, by label."""
    named_by: tuple[Path, ...]
    """The file that the class names come from, if any."""
    key_points: int = 0
    """Numbers that follow the box in a line."""
    left_out: Sequence[Path] = ()
    """Files among the pictures that isodet does not read."""
    unpaired: Sequence[Path] = ()
    """Label files without a picture."""
    notes: tuple[str, ...] = ()


def yolo_places(annotations: Path, images: Path | None, classes: Sequence[str] | None, split: str) -> YoloPlaces:
    """Where the files of a data.yaml, an obj.data, a folder of labels or a list of pictures are.

    Raises `DatasetError`, also where no picture has a label file.
    """
    if os.path.isfile(annotations / "data.yaml"):
        annotations = annotations / "data.yaml"
    if annotations.suffix.lower() in (".yaml", ".yml"):
        places = data_yaml_places(annotations, images, split)
    elif os.path.isdir(annotations):
        places = label_folder_places(annotations, images, classes)
    elif annotations.suffix.lower() == ".data":
        places = obj_data_places(annotations, images, classes, split)
    else:
        places = picture_list_places(annotations, annotations, images, classes)
    if not places.pairs:
        left_out = f" ({left_out_text(places.left_out)})" if places.left_out else ""
        raise DatasetError.at(annotations, f"expected pictures in {places.folder}; there is none{left_out}")
    require_labels(annotations, places)
    return places


def data_yaml_places(path: Path, images: Path | None, split: str) -> YoloPlaces:
    if images is not None:
        raise DatasetError.at(path, "it names its own images; leave the images folder out")
    content = read_data_yaml(path)
    known = names_of(content["names"], path)
    entries = entries_of(content, split, path)
    if not entries:
        splits = ", ".join(key for key in ("train", "val", "test") if content.get(key)) or "no split"
        raise DatasetError(f"{path}: missing key '{split}' (it has: {splits})", key=split, path=path)
    root = path.parent / "".join(entries_of(content, "path", path)[:1])
    if not os.path.isdir(root):
        root = path.parent  # `path` is often that of the machine that wrote it
    pairs: list[tuple[Path, Path]] = []
    left_out: list[Path] = []
    unpaired: list[Path] = []
    notes: list[str] = []
    for entry in entries:
        place = root / entry
        if not os.path.exists(place) and entry.startswith("../"):
            place = root / entry[3:]  # as Roboflow writes it
        if not os.path.exists(place) and (moved := moved_place(entry, root)) is not None:
            notes.append(f"{split}: {entry} is another machine's path, taken for {moved}")
            place = moved
        if os.path.isdir(place):
            entry_pairs, unread, without_picture = _paired(place, _swapped(place, "images", "labels") or place)
            left_out += unread
            unpaired += without_picture
        elif os.path.isfile(place):
            listed = listed_pictures(place, root)
            entry_pairs = [(picture, _label_file(picture)) for picture in listed.pictures]
            notes += listed.notes
        else:
            raise DatasetError.at(path, f"no such folder or list of pictures: {place}", key=split)
        if pairs and entry_pairs and not any(os.path.isfile(label) for _, label in entry_pairs):
            count = len(entry_pairs)
            notes.append(f"none of the {count} pictures of {place} has a label file (all are without objects)")
        pairs += entry_pairs
    key_points = key_point_numbers(content, path)
    return YoloPlaces(pairs, root, known, (path,), key_points, left_out, unpaired, tuple(notes))


def label_folder_places(folder: Path, images: Path | None, classes: Sequence[str] | None) -> YoloPlaces:
    labels = folder / "labels" if os.path.isdir(folder / "labels") else folder
    if images is None:
        beside = _swapped(labels, "labels", "images")
        images = beside if beside is not None and os.path.isdir(beside) else labels
    pairs, left_out, unpaired = _paired(images, labels)
    known, named_by = class_names(folder, classes)
    return YoloPlaces(pairs, images, known, named_by, key_points_beside(folder), left_out, unpaired)


def picture_list_places(path: Path, names: Path, images: Path | None, classes: Sequence[str] | None) -> YoloPlaces:
    """The list `path`, with class names that are in or near `names`."""
    listed = listed_pictures(path, images or path.parent)
    pairs = [(picture, _label_file(picture)) for picture in listed.pictures]
    known, named_by = class_names(names, classes)
    return YoloPlaces(pairs, images or path.parent, known, named_by, key_points_beside(path.parent), notes=listed.notes)


def obj_data_places(path: Path, images: Path | None, classes: Sequence[str] | None, split: str) -> YoloPlaces:
    content = read_obj_data(path)
    key = {"val": "valid"}.get(split, split)
    lists = {name: content[name] for name in ("train", "valid", "test") if content.get(name)}
    if not lists:
        raise DatasetError.at(
            path, "expected Darknet's obj.data with train = LIST.txt and names = FILE; it has no list"
        )
    notes: tuple[str, ...] = ()
    if key not in lists and len(lists) == 1:  # as CVAT writes it: one list is the data set
        key = next(iter(lists))
        notes = (f"{path.name} has one list, {key}, which was read",)
    if key not in lists:
        raise DatasetError(f"{path}: missing key '{key}' (it has: {', '.join(lists)})", key=key, path=path)
    place = place_of(lists[key], path.parent)
    if not os.path.isfile(place):
        raise DatasetError.at(path, f"no such list of pictures: {place}", key=key)
    places = picture_list_places(place, path, images, classes)
    if content.get("names") and os.path.isfile(place_of(content["names"], path.parent)):
        file = place_of(content["names"], path.parent)
        places = replace(places, known=read_class_names(file), named_by=(file,))
    return replace(places, notes=(*notes, *places.notes))


def require_labels(annotations: Path, places: YoloPlaces) -> None:
    """Raises `DatasetError` where no picture has a label file, and no folder of labels has one: labels are missing."""
    present = [(picture, label) for picture, label in places.pairs if os.path.isfile(picture)]
    if not present or any(os.path.isfile(label) for _, label in present):
        return  # the reader reports which pictures are missing
    if os.path.isfile(annotations) and any(_has_labels(folder) for folder in {label.parent for _, label in present}):
        return  # a split of pictures without objects
    raise DatasetError.at(
        annotations,
        f"none of the {len(places.pairs)} pictures in {places.folder} has a label file there (the first "
        f"would be {present[0][1]}); check the images folder, or what the folder of labels is called. Where all "
        "pictures are without objects, give one of them an empty label file",
    )


def _has_labels(folder: Path) -> bool:
    return any(path.suffix.lower() == ".txt" and is_label_file(path) for path in folder.glob("*"))


def _paired(images: Path, labels: Path) -> tuple[list[tuple[Path, Path]], list[Path], list[Path]]:
    """The pictures below `images` with the label files that they may have below `labels`.

    Also the files among the pictures that are not read, and the label files (the first line is numbers) without a
    picture.
    """
    listing = list_pictures(files_in(images))
    pairs = [(p, (labels / p.relative_to(images)).with_suffix(".txt")) for p in listing.pictures]
    paired = {label for _, label in pairs}
    texts = [p for p in files_in(labels) if p.suffix.lower() == ".txt"] if os.path.isdir(labels) else []
    return pairs, listing.left_out, [p for p in texts if p not in paired and is_label_file(p)]


def lost_objects_text(path: Path) -> str:
    """A label file without a picture, and how many objects are lost with it."""
    count = sum(1 for line in path.read_bytes().splitlines() if line.strip())
    return f"{path} ({count} object{'' if count == 1 else 's'})"


def is_label_file(path: Path) -> bool:
    """Whether the first line of a text file is a class and at least four numbers."""
    try:
        with path.open("rb") as file:
            words = file.read(4096).decode("utf-8-sig", errors="replace").split("\n", 1)[0].split()
        return len(words) >= 5 and all(math.isfinite(float(word)) for word in words[:5])
    except (OSError, ValueError):
        return False


def _label_file(picture: Path) -> Path:
    """The label file of a picture: under labels/ for images/, else beside it."""
    swapped = _swapped(picture, "images", "labels")
    return (swapped if swapped is not None else picture).with_suffix(".txt")


def _swapped(path: Path, old: str, new: str) -> Path | None:
    """`path` with `new` in the place of its last part of the name `old`; None where it has no such part."""
    parts = list(path.parts)
    if old not in parts:
        return None
    last = len(parts) - 1 - parts[::-1].index(old)
    return Path(*parts[:last], new, *parts[last + 1 :])
