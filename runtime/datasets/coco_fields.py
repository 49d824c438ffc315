"""The entries of a COCO file: ids as numbers or text, images that may lack a size, categories that share a name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

from runtime.datasets.annotations import MOST_PIXELS, NO_FILE, NO_SIZE, DatasetError, Problem, is_number
from runtime.images.image import ImageError
from runtime.images.image_header import image_size

Id = int | str


def id_of(value: Any) -> Id | None:
    """An id: a whole number, also written as 7.0 or "7", or any other text. None where there is none."""
    if type(value) is int:  # first, since nearly all of millions are
        return value
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isdecimal() and len(text) < 19 else text or None
    return None


def required_id(entry: Mapping[str, Any], where: str) -> Id:
    """The `id` of an entry. Raises `DatasetError`, which begins with `where`."""
    entry_id = id_of(entry.get("id"))
    if entry_id is None:
        raise DatasetError(f"{where}: id: expected a whole number or text, got {entry.get('id')!r}")
    return entry_id


def numbered(ids: Sequence[Id]) -> dict[Id, int]:
    """A number for each id: the id itself, or, where one of them is text, its place from 1."""
    if all(isinstance(entry, int) for entry in ids):
        return {entry: int(entry) for entry in ids}
    return {entry: place for place, entry in enumerate(ids, start=1)}


def side_of(entry: Mapping[str, Any], key: str, where: str) -> int | None:
    """Width or height in pixels; None if it is missing, or 0, as some tools write. Raises `DatasetError`."""
    value = entry.get(key)
    if value is None or (is_number(value) and value == 0):
        return None
    if not is_number(value) or value % 1:  # infinity and NaN leave a remainder, too
        raise DatasetError(f"{where}: {key}: expected a whole number, got {value!r}")
    value = int(value)
    if value < 1:
        raise DatasetError(f"{where}: expected height and width of at least 1 pixel, got {key} {value}")
    if value > MOST_PIXELS:
        raise DatasetError(f"{where}: expected height and width in pixels, got one of more than {MOST_PIXELS}")
    return value


def roots_of_a_name(categories: Sequence[Mapping[str, Any]], used: Set[Id | None]) -> set[int]:
    """Places of categories that only name the data set.

    Roboflow begins its list with the project, as the supercategory of the others, and a class may have the same name.
    Such a category has no object (`used` has the ids of those that have), and another category has its name.
    """
    names = [category.get("name") for category in categories]
    above = {category.get("supercategory") for category in categories if isinstance(category.get("supercategory"), str)}
    places: set[int] = set()
    for place, category in enumerate(categories):
        same_name = [i for i, name in enumerate(names) if name == names[place] and i != place and i not in places]
        if same_name and names[place] in above and id_of(category.get("id")) not in used:
            places.add(place)
    return places


class CocoImage(NamedTuple):
    """An image as the file names it."""

    number: int
    file_name: str
    height: int
    """0, as is the width, for an image that is left out."""
    width: int


def read_images(
    entries: Sequence[Mapping[str, Any]], path: Path, folder: Path, check_files: bool, problems: list[Problem]
) -> tuple[dict[Id, CocoImage], str | None]:
    """The images of the file `path` by their ids, in its order; and the first file name that is not in `folder`.

    A size that the file does not have is read from the picture. Raises `DatasetError`.
    """
    rows: dict[Id, tuple[str, int | None, int | None]] = {}
    for i, image in enumerate(entries):
        image_id = required_id(image, f"{path}: images[{i}]")
        where = f"{path}: images[{i}] (id {image_id})"
        if image_id in rows:
            raise DatasetError(
                f"{where}: this image id is there twice ({rows[image_id][0]!r}, {image.get('file_name')!r})"
            )
        file_name = image.get("file_name")
        if not isinstance(file_name, str) or not file_name:
            raise DatasetError(f"{where}: file_name: expected text, got {file_name!r}")
        rows[image_id] = (file_name, side_of(image, "height", where), side_of(image, "width", where))
    number_of = numbered(list(rows))
    images: dict[Id, CocoImage] = {}
    first_missing: str | None = None
    for image_id, (file_name, height, width) in rows.items():
        number, file = number_of[image_id], folder / file_name
        if (check_files or height is None or width is None) and not os.path.isfile(file):
            problems.append(Problem(NO_FILE, number, detail=str(file)))
            first_missing = first_missing or file_name
            height = width = 0
        elif height is None or width is None:
            try:
                height, width = image_size(file)
            except ImageError as error:
                problems.append(Problem(NO_SIZE, number, detail=str(error)))
                height = width = 0
        images[image_id] = CocoImage(number, file_name, height, width)
    return images, first_missing
