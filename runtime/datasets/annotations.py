"""Annotated pictures of every format: the records, and the problems of their file."""

from __future__ import annotations

import difflib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from isodet.errors import IsodetError
from runtime.images.formats.boxes import HEIC_ADVICE
from runtime.images.image import ImageError
from runtime.images.picture_files import is_heic


class DatasetError(IsodetError, ValueError):
    """An annotation file that cannot be used; the message names the file, the key or line, and what to do."""


def annotation_bytes(path: Path, most: int = -1) -> bytes:
    """The first `most` bytes of an annotation file, or all of it. Raises `DatasetError` where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(most)
    except FileNotFoundError:
        raise DatasetError.at(path, "no such annotation file") from None
    except OSError as error:
        raise DatasetError.at(path, f"cannot read this annotation file: {error.strerror}") from None


def read_annotation_json(path: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The content of a JSON file. Raises `DatasetError` for a file that is not there, cannot be read, or is no JSON."""
    data = annotation_bytes(path)
    try:
        return json.loads(data, object_hook=object_hook)
    except (ValueError, RecursionError) as error:  # malformed JSON, bytes that are not UTF-8, lists in lists in lists
        raise DatasetError.at(path, f"not valid JSON ({error})") from None


EVERY_CLASS = -1
"""Label of an ignore region without a class: it counts for every class."""


@dataclass(frozen=True)
class ImageRecord:
    """One picture and its G objects."""

    id: int
    path: Path
    height: int
    width: int
    boxes_xyxy: NDArray[np.float32]
    """[G, 4] pixels of the picture, clipped to it; every box has a positive area."""
    labels: NDArray[np.int64]
    """[G], 0..C-1; `EVERY_CLASS` for a crowd box without a class."""
    crowd: NDArray[np.bool_]
    """[G], True for regions that training and evaluation ignore: COCO's crowds, VOC's difficult objects,
    `bboxes_ignore` of a list."""
    area: NDArray[np.float32]
    """[G] square pixels: the file's own `area` where it has one (a mask's, usually), else the box's."""


@dataclass(frozen=True)
class Problem:
    """One thing in the annotation file that was left out or changed."""

    reason: str
    image_id: int | None
    annotation_id: int | None = None
    detail: str = ""


def left_out(paths: Iterable[Path]) -> list[Problem]:
    """A problem for each file among the pictures that is not read as a picture."""
    return [Problem(HEIC if is_heic(path) else LEFT_OUT, None, detail=str(path)) for path in paths]


class BrokenEntry(IsodetError, ValueError):
    """The annotations of one picture, of which nothing can be used; the message says where they are."""


class _OfPicture(Protocol):
    @property
    def path(self) -> Path: ...


Item = TypeVar("Item")
Entry = TypeVar("Entry", bound=_OfPicture)


def read_entries(
    items: Iterable[Item], read: Callable[[Item, int], Entry], problems: list[Problem], check_files: bool
) -> list[Entry]:
    """The results of `read(item, image_id)`, with image ids from 1.

    `read` raises `BrokenEntry` or `ImageError` for an item that cannot be used; it goes to `problems`. So does, with
    `check_files`, an item whose picture is missing.
    """
    entries = []
    for image_id, item in enumerate(items, start=1):
        try:
            entry = read(item, image_id)
        except BrokenEntry as error:
            problems.append(Problem(BROKEN_ENTRY, image_id, detail=str(error)))
        except ImageError as error:
            reason = NO_SIZE if os.path.isfile(error.path) else NO_FILE
            problems.append(Problem(reason, image_id, detail=str(error)))
        else:
            if not check_files or os.path.isfile(entry.path):
                entries.append(entry)
            else:
                problems.append(Problem(NO_FILE, image_id, detail=str(entry.path)))
    return entries


@dataclass(frozen=True)
class Problems:
    """Everything in an annotation file that was left out or changed, one entry each."""

    items: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    """How the file was read, one line each: facts about the whole file, not about one image."""

    def __len__(self) -> int:
        return len(self.items)

    @property
    def counts(self) -> dict[str, int]:
        """How often each reason occurs, the most frequent first."""
        return dict(Counter(item.reason for item in self.items).most_common())

    def summary(self) -> str:
        """One line for a log, such as '2 boxes with NaN or infinite numbers (skipped)', or ''."""
        return ", ".join([*(reason_text(count, reason) for reason, count in self.counts.items()), *self.notes])

    def why(self, limit: int = 3) -> str:
        """The most frequent reasons, each with the first place where it occurs; '' for none."""
        parts = []
        for reason, count in list(self.counts.items())[:limit]:
            first = next((item.detail for item in self.items if item.reason == reason), "")
            parts.append(reason_text(count, reason) + (f", the first: {first}" if first else ""))
        return "; ".join(parts)


@dataclass(frozen=True)
class CocoDataset:
    """Annotated pictures of any format, read and checked, in COCO's terms.

    Label i is category `category_ids[i]`, named `class_names[i]`.
    """

    annotations: Path
    """The file or folder that was named."""
    images_dir: Path
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    records: tuple[ImageRecord, ...]
    problems: Problems
    files: tuple[Path, ...] = ()
    """Every annotation file that was read; empty where that is `annotations` alone."""
    voc_origin: int | None = None
    """What the coordinates of Pascal VOC files were counted from, 0 or 1; None for other formats."""

    def __len__(self) -> int:
        return len(self.records)


NOT_FINITE = "boxes with NaN or infinite numbers (skipped)"
NO_AREA = "boxes with zero or negative width or height (skipped)"
OUTSIDE = "boxes entirely outside their image (skipped)"
CLIPPED = "boxes partly outside their image (clipped)"
NO_BBOX = "annotations without a bbox of four numbers (skipped)"
UNKNOWN_CATEGORY = "annotations of an unknown category_id (skipped)"
UNKNOWN_IMAGE = "annotations of an unknown image_id (skipped)"
OTHER_CLASS = "annotations of classes that were not asked for (skipped)"
NO_FILE = "images whose file is missing (skipped)"
BROKEN_ENTRY = "images whose annotations cannot be read (skipped)"
NO_SIZE = "images whose size cannot be read (skipped)"
NO_CLASS = "objects without a known class (skipped)"
ABSENT_CLASS = "classes without an object in this data set"
BAD_FLAG = "annotations whose iscrowd or difficult is neither 0 nor 1 (taken as objects)"
TURNED = "boxes with a rotation (their upright bounds are taken)"
BAD_ROTATION = "boxes whose rotation is no finite number (taken as upright)"
FROM_0 = "boxes with a coordinate below 1, a fraction, or a rotation: do they count from 0 (voc_origin: 0)?"
KEY_POINTS = "polygons far outside their picture, as key points would be (skipped)"
NO_ANNOTATION = "pictures without an annotation file (not read)"
NOT_LISTED = "pictures of a list that the annotations do not have (skipped)"
NO_PICTURE = "label files without a picture (not read)"
BORROWED = "annotation files that name another one's picture (taken for the picture of their own name)"
LEFT_OUT = "files among the pictures that are no pictures that are read (left out)"
HEIC = f"pictures in HEIC, which are not read (left out; {HEIC_ADVICE})"

_ONE = {
    NOT_FINITE: "box with NaN or infinite numbers (skipped)",
    NO_AREA: "box with zero or negative width or height (skipped)",
    OUTSIDE: "box entirely outside its image (skipped)",
    CLIPPED: "box partly outside its image (clipped)",
    NO_BBOX: "annotation without a bbox of four numbers (skipped)",
    UNKNOWN_CATEGORY: "annotation of an unknown category_id (skipped)",
    UNKNOWN_IMAGE: "annotation of an unknown image_id (skipped)",
    OTHER_CLASS: "annotation of a class that was not asked for (skipped)",
    NO_FILE: "image whose file is missing (skipped)",
    BROKEN_ENTRY: "image whose annotations cannot be read (skipped)",
    NO_SIZE: "image whose size cannot be read (skipped)",
    NO_CLASS: "object without a known class (skipped)",
    ABSENT_CLASS: "class without an object in this data set",
    BAD_FLAG: "annotation whose iscrowd or difficult is neither 0 nor 1 (taken as an object)",
    TURNED: "box with a rotation (its upright bounds are taken)",
    BAD_ROTATION: "box whose rotation is no finite number (taken as upright)",
    FROM_0: "box with a coordinate below 1, a fraction, or a rotation: does it count from 0 (voc_origin: 0)?",
    KEY_POINTS: "polygon far outside its picture, as key points would be (skipped)",
    NO_ANNOTATION: "picture without an annotation file (not read)",
    NOT_LISTED: "picture of a list that the annotations do not have (skipped)",
    NO_PICTURE: "label file without a picture (not read)",
    BORROWED: "annotation file that names another one's picture (taken for the picture of its own name)",
    LEFT_OUT: "file among the pictures that is no picture that is read (left out)",
    HEIC: f"picture in HEIC, which is not read (left out; {HEIC_ADVICE})",
}
"""Each reason for one alone."""


def reason_text(count: int, reason: str) -> str:
    """How often a problem's `reason` occurs: '2 boxes with a rotation ...', '1 box with a rotation ...'."""
    return f"{count} {_ONE.get(reason, reason) if count == 1 else reason}"


class Row(NamedTuple):
    """One usable object."""

    box: tuple[float, float, float, float]
    """xyxy pixels."""
    label: int
    crowd: bool = False
    area: float | None = None
    """Square pixels; None for the box's."""


def make_record(image_id: int, path: Path, height: int, width: int, rows: Sequence[Row]) -> ImageRecord:
    """The record of a picture and its usable objects."""
    boxes = np.array([row.box for row in rows], np.float32).reshape(-1, 4)
    labels, crowd = np.array([row.label for row in rows], np.int64), np.array([row.crowd for row in rows], np.bool_)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) if area is None else area for b, _, _, area in rows]
    return ImageRecord(image_id, path, height, width, boxes, labels, crowd, np.array(areas, np.float32))


def clipped_box(
    x1: float, y1: float, x2: float, y2: float, height: int, width: int, tolerance: float = 1e-3
) -> tuple[tuple[float, float, float, float] | None, str]:
    """A box clipped to its picture, or None; and the reason where it is skipped or clipped.

    `tolerance` in pixels: annotation tools round, so a box that leaves the picture by less is not reported.
    """
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        return None, NOT_FINITE
    if x2 <= x1 or y2 <= y1:
        return None, NO_AREA
    box = max(0.0, x1), max(0.0, y1), min(float(width), x2), min(float(height), y2)
    # Compared as float32, as boxes are kept: an area must not vanish by rounding later. A whole pixel never does.
    thin = box[2] - box[0] < 1 or box[3] - box[1] < 1
    if thin and (np.float32(box[2]) <= np.float32(box[0]) or np.float32(box[3]) <= np.float32(box[1])):
        return None, OUTSIDE if box[2] <= box[0] or box[3] <= box[1] else NO_AREA
    moved = x1 < -tolerance or y1 < -tolerance or x2 > width + tolerance or y2 > height + tolerance
    return box, CLIPPED if moved else ""


def turned_bounds(box: tuple[float, float, float, float], degrees: float) -> tuple[float, float, float, float]:
    """The upright xyxy box around `box` (xyxy) after a turn about its middle; both directions give the same box."""
    x1, y1, x2, y2 = box
    angle = math.radians(degrees % 180)
    c, s = abs(math.cos(angle)), abs(math.sin(angle))
    w, h = (x2 - x1) * c + (y2 - y1) * s, (x2 - x1) * s + (y2 - y1) * c
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def rotation_of(value: Any) -> float | None:
    """A rotation in degrees from a number or its text; 0 for none, empty text and whole numbers of half turns.

    None for everything else: NaN, infinity, other text.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return 0.0
    try:
        degrees = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if not math.isfinite(degrees) else degrees if degrees % 180 else 0.0


_FLAGS = dict.fromkeys(("1", "1.0", "true", "yes"), True)
_FLAGS |= dict.fromkeys(("", "0", "0.0", "-0.0", "false", "no", "nan", "none", "null"), False)


def flag_of(value: Any) -> bool | None:
    """The meaning of 0, 1, true, false, their texts, nothing, or NaN (an empty cell) in a file; None for the rest."""
    return _FLAGS.get(str(value).strip().lower())


def decoded_text(data: bytes) -> str:
    """Text of a file: UTF-8 with or without byte order mark, or UTF-16 with one, as PowerShell writes lists.

    Raises `UnicodeDecodeError`.
    """
    return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")


def read_text(path: Path, trouble: str) -> str:
    """The text of the file `path`. Raises `DatasetError`, whose reason begins with `trouble`."""
    try:
        return decoded_text(path.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError.at(path, f"{trouble}: {error}") from None


def read_lines(path: Path, trouble: str) -> list[str]:
    """The lines of the text file `path` that are not empty, stripped. Raises `DatasetError` as `read_text` does."""
    return [line.strip() for line in read_text(path, trouble).splitlines() if line.strip()]


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def as_float(number: float) -> float:
    """A number of JSON as a float. Whole numbers have no limit in JSON: one that is too large becomes infinite."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


MOST_PIXELS = 1 << 31
"""Limit for the side of a picture: more than any format allows."""


def choose_classes(
    known: Sequence[str], asked: Sequence[str] | None, where: str, allow_absent: bool = False
) -> tuple[tuple[str, ...], list[Problem]]:
    """Class names in label order: `asked`, else `known`; and a problem for each of them that is not known.

    `where` begins the messages. Raises `DatasetError` for an empty or repeated choice, and, unless `allow_absent`,
    for a class that is not known.
    """
    if asked is None:
        return tuple(known), []
    if isinstance(asked, str) or not asked:
        raise DatasetError(f"{where}: classes: expected a list of at least one class name, got {asked!r}")
    if len(set(asked)) != len(asked):
        twice = next(name for name in asked if list(asked).count(name) > 1)
        raise DatasetError(f"{where}: classes: {twice!r} was asked for twice")
    absent = [name for name in asked if name not in set(known)]
    if absent and not allow_absent:
        raise DatasetError(f"{where}: there is no class {absent[0]!r}; {nearest_class(absent[0], known)}")
    return tuple(asked), [Problem(ABSENT_CLASS, None, detail=repr(name)) for name in absent]


def nearest_class(name: str, known: Sequence[str]) -> str:
    """The end of a message: the class that `name` may have meant, or the known classes."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(list(known)[:20])}"


def read_class_names(path: str | PathLike[str]) -> list[str]:
    """Class names of a text file, one a line in the order of labels; empty lines do not count.

    Raises `DatasetError`.
    """
    names = read_lines(Path(path), "class names cannot be read")
    if not names:
        raise DatasetError.at(path, "expected class names, one a line; it has none")
    require_distinct(names, str(path))
    return names


def require_distinct(names: Sequence[str], where: str) -> None:
    """Raises `DatasetError` for two classes of the same name. `where` begins the message."""
    first: dict[str, int] = {}
    for number, name in enumerate(names):
        if first.setdefault(name, number) != number:
            raise DatasetError(
                f"{where}: the class name {name!r} is there twice (labels {first[name]} and {number}); they must differ"
            )
