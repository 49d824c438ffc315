"""The files that describe a YOLO data set: data.yaml, Darknet's obj.data, and lists of class names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from runtime.datasets.annotations import DatasetError, read_class_names, read_text, require_distinct
from runtime.datasets.picture_list import endings
from runtime.files.write import absolute_path

_NAMES = ("classes.txt", "obj.names", "_darknet.labels", "labels.names")
_NOTHING = ("", "~", "null", "Null", "NULL", "None")


def read_data_yaml(path: Path) -> dict[str, Any]:
    """The mapping of a data.yaml, in which every scalar stays text: no, on, null and 0x10 may be names of classes.

    Keys with an empty value are left out. Raises `DatasetError`.
    """
    import yaml

    from runtime.files.yaml import parse_yaml

    class Loader(yaml.BaseLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
            keys = Counter(key.value for key, _ in node.value if isinstance(key.value, str))
            for key in (key for key, count in keys.items() if count > 1):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is there twice", node.start_mark)
            return super().construct_mapping(node, deep)

    text = read_text(path, "cannot read this file")
    try:
        content = parse_yaml(text, Loader)
    except yaml.YAMLError as error:
        raise DatasetError.at(path, f"not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or "names" not in content:
        raise DatasetError.at(path, "expected a YOLO data.yaml with names and a key for each split")
    return {key: value for key, value in content.items() if value not in _NOTHING}


def names_of(names: Any, path: Path) -> list[str]:
    """The class names of a data.yaml, by label. Raises `DatasetError`."""
    if isinstance(names, dict):
        keys = {int(key) if isinstance(key, str) and key.isdecimal() else key: key for key in names}
        if set(keys) != set(range(len(names))):
            raise DatasetError.at(
                path, f"expected numbers from 0 to {len(names) - 1} without gaps, got {_short(names)}", key="names"
            )
        names = [names[keys[i]] for i in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DatasetError.at(
            path, f"expected a list of class names, or numbers and names, got {_short(names)}", key="names"
        )
    require_distinct(names, f"{path}: names")
    return names


def entries_of(content: dict[str, Any], key: str, path: Path) -> list[str]:
    """The folders or lists of pictures under a key of a data.yaml; [] without. Raises `DatasetError`."""
    entries = content.get(key) or []
    listed = entries if isinstance(entries, list) else [entries]
    if not all(isinstance(entry, str) for entry in listed):
        raise DatasetError.at(path, f"expected a path or a list of paths, got {_short(entries)}", key=key)
    return listed


def _short(names: Any) -> str:
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return repr(names)[:80]
    kind = f"{type(names).__name__} of {len(names)}" if isinstance(names, (dict, list)) else repr(names)[:80]
    if isinstance(names, dict):
        return f"{kind}: {', '.join(f'{str(key)[:20]!r}' for key in list(names)[:6])}"
    return kind


def key_point_numbers(content: dict[str, Any], path: Path) -> int:
    """How many numbers of key points follow the box in a line of labels, by `kpt_shape`; 0 without.

    Raises `DatasetError`.
    """
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    texts = shape if isinstance(shape, list) else []
    sides = [int(text) if isinstance(text, str) and text.isdecimal() else 0 for text in texts]
    if len(sides) != 2 or sides[0] < 1 or sides[1] not in (2, 3):
        raise DatasetError.at(path, f"expected [points, 2 or 3], got {_short(shape)}", key="kpt_shape")
    return sides[0] * sides[1]


def key_points_beside(folder: Path) -> int:
    """`key_point_numbers` of the data.yaml in the folder of labels, or in one of the two folders above it."""
    for candidate in _around(folder):
        if (content := _described(candidate, folder)) is not None:
            return key_point_numbers(content, candidate / "data.yaml")
    return 0


def _described(candidate: Path, folder: Path) -> dict[str, Any] | None:
    """The data.yaml in `candidate`; None without one, or, above `folder`, for a file of another kind."""
    path = candidate / "data.yaml"
    if not os.path.isfile(path):
        return None
    try:
        return read_data_yaml(path)
    except DatasetError:
        if candidate in (folder, folder / "labels"):
            raise
        return None  # above the folder, a file of this name may be anything, and is not needed


def class_names(place: Path, classes: Sequence[str] | None) -> tuple[Sequence[str], tuple[Path, ...]]:
    """Class names, and the file that they come from: in the folder of `place`, or in one of the two folders above."""
    folder = place if os.path.isdir(place) else place.parent
    for candidate in _around(folder):
        name_files = sorted(candidate.glob("*.names"))
        for path in (*(candidate / name for name in _NAMES), *(name_files if len(name_files) == 1 else [])):
            if os.path.isfile(path):
                return read_class_names(path), (path,)
        if (content := _described(candidate, folder)) is not None:
            path = candidate / "data.yaml"
            return names_of(content["names"], path), (path,)
    if classes is not None:
        return classes, ()
    raise DatasetError.at(
        place,
        "its labels are numbers; write their class names, one a line, into classes.txt there, or give the classes",
    )


def _around(folder: Path) -> list[Path]:
    return [folder, folder / "labels", *list(absolute_path(folder).parents)[:2]]


def read_obj_data(path: Path) -> dict[str, str]:
    """Darknet's obj.data: `train`, `valid`, `names` as they are written. Raises `DatasetError`."""
    lines = read_text(path, "cannot read this file").splitlines()
    pairs = [line.partition("=") for line in lines if "=" in line and not line.lstrip().startswith("#")]
    return {key.strip(): value.strip() for key, _, value in pairs}


def moved_place(text: str, folder: Path) -> Path | None:
    """A path of another machine below `folder`, by at least its last two parts (train/images): one alone may be the
    same for all splits. None where it is not there.
    """
    return next((folder / end for end in endings(text)[:-1] if os.path.exists(folder / end)), None)


def place_of(text: str, folder: Path) -> Path:
    """A path that a description names: in its folder, or by its last parts where these are there (data/obj.names)."""
    places = [folder / text, *(folder / end for end in endings(text))]
    return next((place for place in places if os.path.exists(place)), places[0])
