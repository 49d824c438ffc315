"""Small data sets of each format, for tests that change them into what tools and machines make of the formats."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from runtime.datasets.annotations import CocoDataset
from runtime.images.image import write_image


def picture(path: Path, hw: tuple[int, int] = (40, 60), shade: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.full((*hw, 3), shade, np.uint8))
    return path


def text(path: Path, content: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode(encoding))
    return path


def boxes(data: CocoDataset) -> list[list[float]]:
    return [box for record in data.records for box in record.boxes_xyxy.tolist()]


def coco_json(
    sizes_hw: dict[int, tuple[int, int]], classes: dict[int, str], rows: Iterable[tuple[int, int, list[float]]]
) -> dict[str, Any]:
    """A COCO file of pictures `ID.png` and categories by their ids, with a row (image id, category id, box) for each
    object; the ids of objects begin with 1.
    """
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": h, "width": w} for i, (h, w) in sizes_hw.items()],
        "categories": [{"id": i, "name": name} for i, name in classes.items()],
        "annotations": [
            {"id": i, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for i, (image, category, box) in enumerate(rows, start=1)
        ],
    }


def yolo_set(root: Path) -> Path:
    """a.png with one object of class 0, and a data.yaml that names cat and dog."""
    picture(root / "images" / "a.png")
    text(root / "labels" / "a.txt", "0 0.5 0.5 0.5 0.5\n")
    text(root / "data.yaml", "train: images\nval: images\nnames: [cat, dog]\n")
    return root


VOC_SIZE = "<size><width>60</width><height>40</height></size>"


def voc_object(name: str, bounds: tuple[Any, ...], more: str = "") -> str:
    ends = "".join(f"<{k}>{value}</{k}>" for k, value in zip(("xmin", "ymin", "xmax", "ymax"), bounds, strict=True))
    return f"<object><name>{name}</name>{more}<bndbox>{ends}</bndbox></object>"


def voc_file(name: str, *objects: str, size: str = VOC_SIZE, head: str = "", database: str = "Unknown") -> str:
    source = f"<source><database>{database}</database></source>"
    return f"{head}<annotation><filename>{name}</filename>{source}{size}{''.join(objects)}</annotation>"


def voc_xml(name: str, *bounds: tuple[Any, ...], more: str = "", **parts: str) -> str:
    """A file of cats."""
    return voc_file(name, *(voc_object("cat", box, more) for box in bounds), **parts)


def voc_set(root: Path) -> Path:
    """a.png and b.png with a cat each, and a list of names for each."""
    for name in ("a", "b"):
        picture(root / "JPEGImages" / f"{name}.png")
        text(root / "Annotations" / f"{name}.xml", voc_xml(f"{name}.png", (11, 11, 30, 20)))
        text(root / "ImageSets" / "Main" / f"{name}.txt", f"{name}\n")
    return root
