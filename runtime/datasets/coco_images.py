"""The images of a COCO file: their ids, files and sizes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from runtime.datasets.annotations import NO_FILE, NO_SIZE, DatasetError, Problem
from runtime.datasets.coco_fields import Id, numbered, required_id, side_of
from runtime.images.image import ImageError
from runtime.images.image_header import image_size


class CocoImage(NamedTuple):
    """An image as the file names it."""

    number: int
    file_name: str
    height: int
    """0, and width too, where the image is left out."""
    width: int


def read_images(
    entries: Sequence[Mapping[str, Any]], path: Path, folder: Path, check_files: bool, problems: list[Problem]
) -> tuple[dict[Id, CocoImage], str | None]:
    """The images of the file `path` by their ids, in its order; and the first file name that is not in `folder`.

    An image without width and height is asked for them. Raises `DatasetError`.
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
