"""Writes a generated data set: pictures, COCO JSON and a training config, all of it or nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from isodet.errors import IsodetError

Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""


class RecipeError(IsodetError, ValueError):
    """A data set that cannot be generated as asked; the message says what to change."""


@dataclass(frozen=True)
class Scene:
    """One generated picture: `image` uint8 [H,W,3] BGR, whole-pixel `boxes_xyxy` [G,4], `labels` [G] from 0."""

    image: npt.NDArray[np.uint8]
    boxes_xyxy: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    jpeg_quality: int = 92


def for_pictures(recipe: str, size_hw: tuple[int, int]) -> str:
    """The text `recipe` with the input for pictures of `size_hw` pixels in place of @HEIGHT@ and @WIDTH@.

    The network takes multiples of 32: the letterbox brings the pictures to the next one. Raises `RecipeError` below
    64 px.
    """
    if min(size_hw) < 64:
        raise RecipeError.of("size_hw", f"expected a height and width of at least 64 px, got {size_hw}")
    height, width = (-(-side // 32) * 32 for side in size_hw)
    return recipe.replace("@HEIGHT@", str(height)).replace("@WIDTH@", str(width))


def write_dataset(
    out: Path,
    splits: Mapping[str, tuple[int, Callable[[int], Scene]]],
    class_names: Sequence[str],
    info: Mapping[str, Any],
    licenses: Sequence[Mapping[str, Any]],
    configs: Mapping[str, str],
    progress: Progress | None = None,
) -> None:
    """Write `out/<split>/*.jpg`, `out/<split>.json` and the text files `configs` (name -> text).

    `splits` gives each split's number of images and the function from an index to its `Scene`.
    Everything is made in `out/.partial` and moved at the end, so a folder with JSON files is complete.
    Raises `RecipeError` when `out` already holds files, OSError when it cannot be written.
    """
    for split, (count, _) in splits.items():
        if count < 1:
            raise RecipeError.of(split, f"expected at least 1 image, got {count}")
    if out.exists() and (not out.is_dir() or any(p.name != ".partial" for p in out.iterdir())):
        raise RecipeError.at(out, "already holds files; name a new folder, or delete this one first")
    partial = out / ".partial"
    if partial.exists():  # left by a run that was killed
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    total, done = sum(count for count, _ in splits.values()), 0
    try:
        for split, (count, draw) in splits.items():
            (partial / split).mkdir()
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for index in range(count):
                scene = draw(index)
                file_name = f"{index:06d}.jpg"
                _write_jpeg(partial / split / file_name, scene)
                height, width = scene.image.shape[:2]
                images.append({"id": index + 1, "file_name": file_name, "height": height, "width": width, "license": 1})
                for (x0, y0, x1, y1), label in zip(scene.boxes_xyxy.tolist(), scene.labels.tolist(), strict=True):
                    annotations.append({
                        "id": len(annotations) + 1, "image_id": index + 1, "category_id": label + 1,
                        "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0,
                    })  # fmt: skip
                done += 1
                if progress is not None:
                    progress(done, total)
            categories = [{"id": i + 1, "name": name} for i, name in enumerate(class_names)]
            coco = {"info": dict(info), "licenses": [dict(x) for x in licenses], "images": images,
                    "annotations": annotations, "categories": categories}  # fmt: skip
            (partial / f"{split}.json").write_text(json.dumps(coco), encoding="utf-8")
        for name, text in configs.items():
            (partial / name).write_text(text, encoding="utf-8")
        for name in [*splits, *configs, *(f"{split}.json" for split in splits)]:
            os.replace(partial / name, out / name)
    finally:
        shutil.rmtree(partial)


def _write_jpeg(path: Path, scene: Scene) -> None:
    ok, data = cv2.imencode(".jpg", scene.image, [cv2.IMWRITE_JPEG_QUALITY, scene.jpeg_quality])
    if not ok:
        raise RecipeError.at(path, f"OpenCV could not encode this {scene.image.shape} picture as JPEG")
    path.write_bytes(data.tobytes())
