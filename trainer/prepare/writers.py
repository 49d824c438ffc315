"""Writing a data set as COCO, VOC, YOLO or a JSON list. Each writer returns notes on what its format cannot hold."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from runtime.datasets.annotations import EVERY_CLASS, CocoDataset
from runtime.datasets.orientation import oriented
from runtime.images.image import ImageError
from runtime.images.image_header import image_size
from runtime.images.picture_files import pictures_in


def write_coco(dataset: CocoDataset, names: Sequence[str], path: Path) -> list[str]:
    """One JSON file at `path`; category and image ids are those of `dataset`."""
    annotations: list[dict[str, Any]] = []
    spread = 0
    for record in dataset.records:
        for box, label, crowd, area in zip(
            record.boxes_xyxy, record.labels.tolist(), record.crowd.tolist(), record.area, strict=True
        ):
            spread += label == EVERY_CLASS
            for category in dataset.category_ids if label == EVERY_CLASS else (dataset.category_ids[label],):
                annotations.append({
                    "id": len(annotations) + 1, "image_id": record.id, "category_id": category,
                    "bbox": _xywh(box), "area": _short(area), "iscrowd": int(crowd),
                })  # fmt: skip
    content = {
        "images": [
            {"id": record.id, "file_name": name, "height": record.height, "width": record.width}
            for record, name in zip(dataset.records, names, strict=True)
        ],
        "annotations": annotations,
        "categories": [
            {"id": i, "name": name} for i, name in zip(dataset.category_ids, dataset.class_names, strict=True)
        ],
    }
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return [_SPREAD.format(spread)] if spread else []


def write_list(dataset: CocoDataset, names: Sequence[str], path: Path) -> list[str]:
    """One JSON list at `path`, and the names of its labels beside it in <path>.classes.txt."""
    content = []
    for record, name in zip(dataset.records, names, strict=True):
        ann: dict[str, Any] = {}
        for keys, rows in ((("bboxes", "labels"), ~record.crowd), (("bboxes_ignore", "labels_ignore"), record.crowd)):
            ann[keys[0]] = [[_short(v) for v in box] for box in record.boxes_xyxy[rows]]
            ann[keys[1]] = record.labels[rows].tolist()
        content.append({"filename": name, "width": record.width, "height": record.height, "ann": ann})
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    _write_names(path.with_suffix(".classes.txt"), dataset.class_names)
    return _areas_lost(dataset)


def write_voc(dataset: CocoDataset, names: Sequence[str], folder: Path, split: str) -> list[str]:
    """Annotations/*.xml and ImageSets/Main/<split>.txt in `folder`."""
    rounded = spread = 0
    for record, name in zip(dataset.records, names, strict=True):
        root = ET.Element("annotation")
        ET.SubElement(root, "folder").text = "JPEGImages"
        ET.SubElement(root, "filename").text = name
        size = ET.SubElement(root, "size")
        for key, value in (("width", record.width), ("height", record.height), ("depth", 3)):
            ET.SubElement(size, key).text = str(value)
        for box, label, crowd in zip(record.boxes_xyxy, record.labels.tolist(), record.crowd.tolist(), strict=True):
            spread += label == EVERY_CLASS
            rounded += bool((box != np.rint(box)).any())
            for class_name in dataset.class_names if label == EVERY_CLASS else (dataset.class_names[label],):
                element = ET.SubElement(root, "object")
                ET.SubElement(element, "name").text = class_name
                ET.SubElement(element, "difficult").text = str(int(crowd))
                bounds = ET.SubElement(element, "bndbox")
                for key, value in zip(("xmin", "ymin", "xmax", "ymax"), voc_box(box), strict=True):
                    ET.SubElement(bounds, key).text = str(value)
        file = (folder / "Annotations" / name).with_suffix(".xml")
        file.parent.mkdir(parents=True, exist_ok=True)
        ET.indent(root)
        ET.ElementTree(root).write(file, encoding="utf-8")
    sets = folder / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    _write_names(sets / f"{split}.txt", [Path(name).with_suffix("").as_posix() for name in names])
    notes = [_SPREAD.format(spread)] if spread else []
    if rounded:
        notes.append(f"{rounded} boxes were rounded to whole pixels, which is all that VOC has")
    unused = set(range(len(dataset.class_names))) - {label for r in dataset.records for label in r.labels.tolist()}
    if unused:
        notes.append(f"{len(unused)} classes without an object are lost: VOC files name classes by objects only")
    return notes + _areas_lost(dataset)


def voc_box(box: np.ndarray) -> tuple[int, int, int, int]:
    """Edges xyxy [4] as the devkit's pixel indices from 1, both ends included.

    Edges are rounded to whole pixels. A side that vanishes by this becomes the one pixel at its middle.
    """
    ends = []
    for low, high in ((float(box[0]), float(box[2])), (float(box[1]), float(box[3]))):
        first, last = int(np.rint(low)) + 1, int(np.rint(high))
        middle = int((low + high) / 2) + 1
        ends.append((first, last) if first <= last else (middle, middle))
    (xmin, xmax), (ymin, ymax) = ends
    return xmin, ymin, xmax, ymax


def write_yolo(dataset: CocoDataset, names: Sequence[str], folder: Path, split: str, with_pictures: bool) -> list[str]:
    """labels/**.txt and labels/classes.txt in `folder`, and data.yaml where the pictures are in its images/."""
    lost = foreign = 0
    labels = folder / "labels"
    labels.mkdir()
    for record, name in zip(dataset.records, names, strict=True):
        try:
            record = oriented(record, image_size(record.path))  # shares are of the upright picture
        except ImageError:
            foreign += 1
        lines = []
        for box, label, crowd in zip(record.boxes_xyxy, record.labels.tolist(), record.crowd.tolist(), strict=True):
            if crowd:
                lost += 1
                continue
            x1, y1, x2, y2 = (float(v) for v in box)
            shares = ((x1 + x2) / 2 / record.width, (y1 + y2) / 2 / record.height,
                      (x2 - x1) / record.width, (y2 - y1) / record.height)  # fmt: skip
            lines.append(" ".join([str(label), *(f"{share:.10g}" for share in shares)]))
        file = (labels / name).with_suffix(".txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    _write_names(labels / "classes.txt", dataset.class_names)
    if with_pictures:
        content = {split: "images", "names": dict(enumerate(dataset.class_names))}
        (folder / "data.yaml").write_text(
            yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
    notes = []
    if foreign:
        notes.append(f"{foreign} pictures are unreadable or not of their annotated size, which was taken")
    if not with_pictures:
        named = {record.path.resolve() for record in dataset.records}
        unnamed = sum(path.resolve() not in named for path in pictures_in(dataset.images_dir))
        if unnamed:
            notes.append(
                f"{unnamed} more pictures are in {dataset.images_dir}: YOLO takes them for empty ones; use --copy"
            )
    if lost:
        notes.append(f"{lost} ignored boxes (crowds, difficult, ignore regions) were left out: YOLO has none")
    return notes + _areas_lost(dataset)


_SPREAD = "{} ignore regions of every class were written once for each class"


def _areas_lost(dataset: CocoDataset) -> list[str]:
    count = 0
    for record in dataset.records:
        sides = record.boxes_xyxy[:, 2:] - record.boxes_xyxy[:, :2]
        count += int((~np.isclose(sides.prod(axis=1), record.area, rtol=1e-3)).sum())
    return [f"{count} areas that are not their box's (of masks) were left out: only COCO has them"] if count else []


def _write_names(path: Path, names: Sequence[str]) -> None:
    path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def _short(value: Any) -> float:
    """The shortest decimal that is the same float32."""
    return float(str(np.float32(value)))


def _xywh(box: np.ndarray) -> list[float]:
    """[x, y, w, h]; w and h have few digits where x + w is still the same float32."""
    sizes = []
    for low, high in ((box[0], box[2]), (box[1], box[3])):
        exact = float(high) - _short(low)
        rounded = round(_short(high) - _short(low), 4)
        sizes.append(rounded if rounded > 0 and np.float32(_short(low) + rounded) == high else exact)
    return [_short(box[0]), _short(box[1]), *sizes]
