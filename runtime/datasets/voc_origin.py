"""Whether the coordinates of a set of VOC files count from 1, as the development kit's, or from 0, as most tools write.

It is decided for the whole set: a file that counts from 1 has no coordinate below 1 and no fraction. The development
kit's own files count from 1 but have a few fractions, so files that name its database prove nothing. A rotation is a
proof, too: CVAT, which writes one for each box, and roLabelImg, whose rotated boxes are <robndbox>, count from 0.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from runtime.datasets.annotations import BrokenEntry
from runtime.datasets.xml_file import read_xml

Bounds = tuple[float, float, float, float]
"""xmin, ymin, xmax, ymax as written."""


class Counting(NamedTuple):
    """The number that the coordinates of a set count from."""

    first: int
    """0 or 1."""
    note: str
    """A line for the user: that coordinates count from 0, and the proof; '' where nothing was decided."""
    against: tuple[str, ...]
    """The boxes that contradict a 1 that was asked for."""


def counts_from(proofs: Iterable[str], others: Iterable[Path], origin: Literal["auto", 0, 1]) -> Counting:
    """The number that the set counts from, by `origin` or by its boxes.

    proofs: where the boxes are that prove a 0 (`proves_0`), outside of files of the development kit.
    others: further files of the same set, asked where there are no `proofs`, so that all lists of a set are read alike.
    """
    if origin != "auto":
        return Counting(origin, "", tuple(proofs) if origin == 1 else ())
    proof = next(iter(proofs), "") or next((str(file) for file in others if _file_proves_0(file)), "")
    why = f"a coordinate below 1, a fraction, or a rotation of CVAT or roLabelImg: {proof}"
    note = f"coordinates count from 0 ({why}); set voc_origin: 1 if they do not" if proof else ""
    return Counting(0 if proof else 1, note, ())


def proves_0(element: ET.Element) -> bool:
    """Whether an <object> proves that its set counts from 0: by a rotation, or by a coordinate."""
    attributes = (name.text or "" for name in element.iterfind("attributes/attribute/name"))
    if element.find("robndbox") is not None or "rotation" in map(str.strip, attributes):
        return True
    xmin, ymin, xmax, ymax = bounds = bounds_of(element) or (0.0, 0.0, 0.0, 0.0)
    if not (xmax > xmin and ymax > ymin):  # a broken box, or zeros in the place of one
        return False
    return any(-1e9 < value < 1 or (abs(value) < 1e9 and value != int(value)) for value in bounds)


def _file_proves_0(file: Path) -> bool:
    try:
        root = read_xml(file)
    except BrokenEntry:
        return False  # the reader of that file reports it
    return not of_devkit(root) and any(map(proves_0, root.iterfind("object")))


def of_devkit(root: ET.Element) -> bool:
    """Whether a file names the database of the VOC challenge itself."""
    return re.match(r"The VOC\d{4} Database", (root.findtext("source/database") or "").strip()) is not None


def bounds_of(element: ET.Element) -> Bounds | None:
    """The numbers of an object's <bndbox>; None where one of them is missing or is no number."""
    values = numbers_of(element, "bndbox", ("xmin", "ymin", "xmax", "ymax"))
    return None if values is None else (values[0], values[1], values[2], values[3])


def rotated_bounds(element: ET.Element) -> tuple[Bounds, float] | None:
    """An object's <robndbox>: its edges from 0 before it is turned about its middle, and the turn in degrees.

    The turn has 4 decimals, the precision of the 6 decimals of radians in these files. None where a number is missing
    or is no number; edges of NaN where the angle is not finite.
    """
    values = numbers_of(element, "robndbox", ("cx", "cy", "w", "h", "angle"))
    if values is None:
        return None
    cx, cy, w, h, angle = values
    if not math.isfinite(angle):
        return (math.nan, math.nan, math.nan, math.nan), 0.0
    return (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), round(math.degrees(angle), 4)


def numbers_of(element: ET.Element, tag: str, keys: Sequence[str]) -> list[float] | None:
    """The numbers of <tag> below `element`, by their `keys`; None where one is missing or is no number."""
    try:
        return [float(element.findtext(f"{tag}/{key}") or "") for key in keys]
    except ValueError:
        return None
