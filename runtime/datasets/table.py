"""A table with one object in each row, as TensorFlow's scripts and Roboflow write it, as entries of a JSON list.

    filename,width,height,class,xmin,ymin,xmax,ymax
    a.jpg,640,480,cat,10,20,40,60

A row without numbers is a picture without objects. Numbers are edges in pixels, without an offset.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.datasets import foreign
from runtime.datasets.annotations import DatasetError, decoded_text

_ENDS = ("xmin", "ymin", "xmax", "ymax")
_NEEDED = {"filename", "class", *_ENDS}


def is_table(path: Path) -> bool:
    """Whether a .csv has the columns of this format."""
    try:
        with path.open("rb") as file:
            first = decoded_text(file.read(4096)).splitlines()[:1]
    except (OSError, UnicodeDecodeError):
        return False
    return bool(first) and set(next(csv.reader(first))) >= _NEEDED


def table_entries(path: Path) -> list[dict[str, Any]]:
    """The pictures of the table `path` as entries of a JSON list, in the order of their first rows.

    Raises `DatasetError` for a file that cannot be read or lacks a column.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(decoded_text(path.read_bytes()), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError.at(path, f"cannot read this table: {error}") from None
    if not rows or not set(rows[0]) >= _NEEDED:
        raise DatasetError.at(path, foreign.TABLE)
    entries: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = row["filename"] or ""
        entry = entries.setdefault(name, {"filename": name, **_size(row), "ann": {"bboxes": [], "labels": []}})
        ends = [_number(row[key]) for key in _ENDS]
        if any(row[key] for key in _ENDS):
            entry["ann"]["bboxes"].append(ends)
            entry["ann"]["labels"].append(row["class"])
    return list(entries.values())


def _size(row: Mapping[str, str | None]) -> dict[str, int]:
    """Width and height where both are whole numbers of pixels; otherwise they are read from the picture."""
    texts = [(row.get(key) or "").strip() for key in ("width", "height")]
    if not all(text.isdecimal() and len(text) < 9 and int(text) > 0 for text in texts):
        return {}
    return {"width": int(texts[0]), "height": int(texts[1])}


def _number(text: str | None) -> float | str | None:
    try:
        return float(text or "")
    except ValueError:
        return text  # the reader of the list reports it
