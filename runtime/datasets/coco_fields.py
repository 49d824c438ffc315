"""The fields of COCO's entries: ids as numbers or text, sizes that may be missing, categories that share a name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runtime.datasets.annotations import MOST_PIXELS, DatasetError

Id = int | str


def id_of(value: Any) -> Id | None:
    """An id as files write it: a whole number, also as 7.0 or "7"; any other text is itself. None for no id."""
    if type(value) is int:  # nearly all; among millions the order counts
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
    found = id_of(entry.get("id"))
    if found is None:
        raise DatasetError(f"{where}: id: expected a whole number or text, got {entry.get('id')!r}")
    return found


def numbered(ids: Sequence[Id]) -> dict[Id, int]:
    """A number for each id: itself, or its place from 1 where one of them is text."""
    if all(isinstance(entry, int) for entry in ids):
        return {entry: int(entry) for entry in ids}
    return {entry: place for place, entry in enumerate(ids, start=1)}


def side_of(entry: Mapping[str, Any], key: str, where: str) -> int | None:
    """Width or height in pixels; None where the file has none, or 0 as some tools write. Raises `DatasetError`."""
    value = entry.get(key)
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise DatasetError(f"{where}: {key}: expected a whole number, got {value!r}")
    if value < 1:
        raise DatasetError(f"{where}: expected height and width of at least 1 pixel, got {key} {value}")
    if value > MOST_PIXELS:
        raise DatasetError(f"{where}: expected height and width in pixels, got one of more than {MOST_PIXELS}")
    return value


def roots_of_a_name(categories: Sequence[Mapping[str, Any]], used: set[Id]) -> set[int]:
    """Places of categories that only name the whole: Roboflow begins its list with the project, as the others'
    supercategory, and that name may be a class's, too. They have no object, and another category of their name exists.
    """
    names = [category.get("name") for category in categories]
    above = {category.get("supercategory") for category in categories if isinstance(category.get("supercategory"), str)}
    places: set[int] = set()
    for place, category in enumerate(categories):
        others = [i for i, name in enumerate(names) if name == names[place] and i != place and i not in places]
        if others and names[place] in above and id_of(category.get("id")) not in used:
            places.add(place)
    return places
