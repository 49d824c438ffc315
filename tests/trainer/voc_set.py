"""Small data sets in the form of Pascal VOC."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runtime.images.image import write_image


def voc_set(folder: Path, boxes: dict[str, tuple[float, ...]], label: str = "a") -> Path:
    """Write a picture of 64x96 px with one object for each name -> xmin, ymin, xmax, ymax; returns `folder`."""
    (folder / "Annotations").mkdir(parents=True)
    for shade, (name, bounds) in enumerate(boxes.items()):
        write_image(folder / "JPEGImages" / f"{name}.png", np.full((64, 96, 3), shade, np.uint8))
        ends = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), bounds, strict=True))
        xml = f"<annotation><filename>{name}.png</filename><object><name>{label}</name><bndbox>{ends}</bndbox></object>"
        (folder / "Annotations" / f"{name}.xml").write_text(xml + "</annotation>")
    return folder
