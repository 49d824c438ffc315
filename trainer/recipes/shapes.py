"""Circles, squares and triangles: a data set that a small detector learns in about a minute."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from trainer.recipes.writer import Progress, Scene, for_pictures, write_dataset

CLASSES = ("circle", "square", "triangle")

RECIPE = """\
# Circles, squares and triangles: the smallest complete recipe, about a minute on a CPU.
# Paths are relative to this file.
name: shapes

data:
  train: {annotations: train.json, images: train}
  val: {annotations: val.json, images: val}

model:
  detector: atss
  classes: [circle, square, triangle]
  input_size_hw: [@HEIGHT@, @WIDTH@]
  backbone: {name: resnet18, width: 0.25}
  neck: {channels: 32, levels: [3, 5], norm: bn}   # objects are at most half of the picture
  head: {depth: 1}
  postprocess: {candidates: 100, detections: 20}

batch_size: 8
augment: {flip: 0.5, scale_probability: 0.3, scale: [0.8, 1.25], color_probability: 0.3}
optim: {kind: adamw, lr: 0.008, weight_decay: 0.05, clip_norm: 10, ema: 0.97}
schedule: {epochs: 16, kind: cosine, warmup_steps: 20}
val_interval: 5
"""


def make_shapes(
    out: Path,
    train_images: int = 240,
    val_images: int = 60,
    size_hw: tuple[int, int] = (128, 128),
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Write `out/{train,val}/*.jpg`, `out/{train,val}.json` (COCO) and the recipe `out/shapes.yaml`.

    The same seed gives the same bytes on the same machine. Raises `RecipeError` when `out` already
    holds files or a number is out of range.
    """
    recipe = for_pictures(RECIPE, size_hw)
    info = {
        "description": "isodet shapes: circles, squares and triangles, generated",
        "version": "1",
        "parameters": {"seed": seed, "size_hw": list(size_hw), "train_images": train_images, "val_images": val_images},
    }
    licenses = [{"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}]
    splits = {
        "train": (train_images, lambda i: draw_scene(size_hw, np.random.default_rng([seed, 0, i]))),
        "val": (val_images, lambda i: draw_scene(size_hw, np.random.default_rng([seed, 1, i]))),
    }
    write_dataset(out, splits, CLASSES, info, licenses, {"shapes.yaml": recipe}, progress)


def draw_scene(size_hw: tuple[int, int], rng: np.random.Generator) -> Scene:
    """One picture: a noisy gradient with up to 4 shapes that do not touch; one in twenty has none."""
    height, width = size_hw
    corners = rng.uniform(30, 220, (2, 2, 3)).astype(np.float32)
    gradient = cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR)
    noise = rng.standard_normal((height, width, 3), np.float32) * rng.uniform(2, 14)
    image = np.clip(gradient + noise, 0, 255).astype(np.uint8)
    taken = np.zeros(size_hw, np.bool_)
    boxes, labels = [], []
    for _ in range(0 if rng.random() < 0.05 else int(rng.integers(1, 5))):
        for _ in range(20):
            side = int(np.exp(rng.uniform(np.log(0.1), np.log(0.45))) * min(size_hw))
            x, y = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
            if not taken[y : y + side, x : x + side].any():
                break
        else:  # crowded: this one finds no place
            continue
        label = int(rng.integers(len(CLASSES)))
        mask = _shape_mask(CLASSES[label], side, rng)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes.append((x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1))
        labels.append(label)
        taken[y : y + side, x : x + side] = True
        region = image[y : y + side, x : x + side]
        region[mask] = _distinct_color(region[mask].mean(0), rng)
    return Scene(image, np.array(boxes, np.int64).reshape(-1, 4), np.array(labels, np.int64))


def _shape_mask(name: str, side: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    mask = np.zeros((side, side), np.uint8)
    last = side - 1
    if name == "circle":
        cv2.circle(mask, (last // 2, last // 2), last // 2, 1, cv2.FILLED)
    elif name == "square":
        cv2.rectangle(mask, (0, 0), (last, round(last * rng.uniform(0.8, 1.0))), 1, cv2.FILLED)
    else:
        apex = round(last * rng.uniform(0.3, 0.7))
        cv2.fillPoly(mask, [np.array([[apex, 0], [last, last], [0, last]], np.int32)], [1])
    return mask.astype(np.bool_)


def _distinct_color(below: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """A BGR color far from `below` [3]: the farthest of several random ones."""
    colors = rng.uniform(0, 255, (8, 3))
    return colors[np.argmax(np.abs(colors - below).sum(1))]
