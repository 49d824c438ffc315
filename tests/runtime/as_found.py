"""Small data sets of each format, for tests that change them into what tools and machines make of the formats."""

from __future__ import annotations

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


def yolo_set(root: Path) -> Path:
    """a.png with one object of class 0, and a data.yaml that names cat and dog."""
    picture(root / "images" / "a.png")
    text(root / "labels" / "a.txt", "0 0.5 0.5 0.5 0.5\n")
    text(root / "data.yaml", "train: images\nval: images\nnames: [cat, dog]\n")
    return root


def voc_xml(name: str, *bounds: tuple[Any, ...], more: str = "", head: str = "", database: str = "Unknown") -> str:
    ends = "".join(
        f"<object><name>cat</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox>"
        f"{more}</object>"
        for a, b, c, d in bounds
    )
    return (
        f"{head}<annotation><filename>{name}</filename><source><database>{database}</database></source>"
        f"<size><width>60</width><height>40</height></size>{ends}</annotation>"
    )


def voc_set(root: Path) -> Path:
    """a.png and b.png with a cat each, and a list of names for each."""
    for name in ("a", "b"):
        picture(root / "JPEGImages" / f"{name}.png")
        text(root / "Annotations" / f"{name}.xml", voc_xml(f"{name}.png", (11, 11, 30, 20)))
        text(root / "ImageSets" / "Main" / f"{name}.txt", f"{name}\n")
    return root
