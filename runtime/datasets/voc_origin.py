"""Whether the coordinates of a set of VOC files count from 1, as the development kit's, or from 0, as most tools write.

It is decided for the whole set: a file that counts from 1 has no coordinate below 1 and no fraction. The development
kit's own files have a few fractions and do count from 1, so those that name its database prove nothing. A rotation
proves as much: CVAT, which writes one for each box, and roLabelImg, whose rotated boxes are <robndbox>, count from 0.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from runtime.datasets.xml_file import XmlError, read_xml

Bounds = tuple[float, float, float, float]
"""xmin, ymin, xmax, ymax as written."""


class Written(NamedTuple):
    """A box as it stands in its file."""

    where: str
    bounds: Bounds
    of_devkit: bool
    """Whether its file says that it is of the VOC challenge itself."""
    has_rotation: bool
    """Whether it is written as the tools write it that turn boxes, by any angle."""


class Counting(NamedTuple):
    """What a set counts from."""

    first: int
    """0 or 1."""
    note: str
    """The line that tells that 0 was found, and where; '' where nothing was decided."""
    against: tuple[str, ...]
    """The boxes that speak against a 1 that was asked for."""


def counts_from(written: Sequence[Written], others: Iterable[Path], origin: Literal["auto", 0, 1]) -> Counting:
    """What the set counts from, by `origin` or by its boxes.

    `others` are further files of the same set, asked where `written` prove nothing, so that all lists of a set are read
    alike.
    """
    proofs = (box.where for box in written if not box.of_devkit and (box.has_rotation or _proves(box.bounds)))
    if origin != "auto":
        return Counting(origin, "", tuple(proofs) if origin == 1 else ())
    proof = next(proofs, "") or next((str(file) for file in others if _file_proves(file)), "")
    why = f"a coordinate below 1, a fraction, or a rotation of CVAT or roLabelImg: {proof}"
    note = f"coordinates count from 0 ({why}); set voc_origin: 1 if they do not" if proof else ""
    return Counting(0 if proof else 1, note, ())


def _proves(bounds: Bounds) -> bool:
    xmin, ymin, xmax, ymax = bounds
    if not (xmax > xmin and ymax > ymin):  # a broken box, or zeros that stand for none
        return False
    return any(-1e9 < value < 1 or (abs(value) < 1e9 and value != int(value)) for value in bounds)


def _file_proves(file: Path) -> bool:
    try:
        root = read_xml(file)
    except XmlError:
        return False  # its own reader tells
    if of_devkit(root):
        return False
    if root.find("object/robndbox") is not None:
        return True
    if any(name.text and name.text.strip() == "rotation" for name in root.iterfind("object/attributes/attribute/name")):
        return True
    return any((bounds := bounds_of(element)) is not None and _proves(bounds) for element in root.iterfind("object"))


def of_devkit(root: ET.Element) -> bool:
    """Whether a file says that it is of the VOC challenge itself."""
    return re.match(r"The VOC\d{4} Database", (root.findtext("source/database") or "").strip()) is not None


def bounds_of(element: ET.Element) -> Bounds | None:
    """The numbers of an object's <bndbox>; None where one of them is missing or none."""
    values = _numbers(element, "bndbox", ("xmin", "ymin", "xmax", "ymax"))
    return None if values is None else (values[0], values[1], values[2], values[3])


def rotated_bounds_of(element: ET.Element) -> tuple[Bounds, float] | None:
    """An object's <robndbox>, as edges from 0 before it is turned about its middle, and the turn in degrees.

    The turn is kept to 4 places, which is what the 6 places of radians in these files hold. None where a number is
    missing or none, and edges of NaN where the angle is not finite.
    """
    values = _numbers(element, "robndbox", ("cx", "cy", "w", "h", "angle"))
    if values is None:
        return None
    cx, cy, w, h, angle = values
    if not math.isfinite(angle):
        return (math.nan, math.nan, math.nan, math.nan), 0.0
    return (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), round(math.degrees(angle), 4)


def _numbers(element: ET.Element, tag: str, keys: Sequence[str]) -> list[float] | None:
    try:
        return [float(element.findtext(f"{tag}/{key}") or "") for key in keys]
    except ValueError:
        return None
