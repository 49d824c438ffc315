"""Real handwritten digits on photographs: a detection data set in seconds, with nothing to download.

The glyphs are scikit-learn's copy of the UCI "Optical Recognition of Handwritten Digits" test set
(1,797 samples of 8x8), the backgrounds its two sample photographs. Boxes are exact, because they are
measured on the mask that the ink is drawn through.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from trainer.recipes.glyphs import (
    TRAIN_SAMPLES,
    VAL_SAMPLES,
    Image,
    Mask,
    Material,
    background,
    contrasting_color,
    load_material,
    paint,
    render_glyph,
    stroke_texture,
    window,
)
from trainer.recipes.writer import Progress, Scene, for_pictures, write_dataset

HEIGHT_RANGE = (12.0, 160.0)
"""Pixels from top to bottom of the ink, drawn log-uniformly."""
MIN_VISIBLE = 0.5
"""Every digit keeps at least this share of its ink visible."""
EMPTY_SHARE = 0.03
"""Share of pictures without any digit."""

RECIPE = """\
# Handwritten digits on photographs: a complete recipe for two CPU cores.
# Paths are relative to this file. Any key can be changed on the command line:
#   trainer fit digits.yaml schedule.epochs=5
name: digits

data:
  train: {annotations: train.json, images: train}
  val: {annotations: val.json, images: val}   # digits by writers that training never sees
  cache: ram                                  # decoded pictures stay in memory, up to 4 GiB of them

model:
  detector: atss
  classes: ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
  input_size_hw: [@HEIGHT@, @WIDTH@]
  backbone: {name: resnet18, width: 0.5}      # half the channels, from scratch: minutes instead of hours
  neck: {channels: 64, levels: [3, 6], norm: bn}
  head: {depth: 2}
  postprocess: {candidates: 300}              # at most 8 digits in a picture; fewer candidates, faster NMS

batch_size: 8
augment:
  flip: 0                                     # a mirrored digit is another symbol
  scale_probability: 0.5                      # steps are what is short here: half of the pictures stay as they are
  scale: [0.6, 1.6]
optim: {kind: adamw, lr: 0.002, weight_decay: 0.05, clip_norm: 10, ema: 0.99}
schedule: {epochs: 16, kind: cosine, warmup_steps: 30}
val_interval: 4
"""

VARIANTS = {
    "digits-fcos.yaml": """\
# The digits recipe with FCOS. Everything that is not here is inherited.
_base_: digits.yaml
name: digits-fcos
model:
  detector: fcos
  assign: {range_factor: 4}                   # the paper's ranges are for pictures of 800 px; these are of 320
""",
    "digits-retinanet.yaml": """\
# The digits recipe with RetinaNet. Everything that is not here is inherited.
_base_: digits.yaml
name: digits-retinanet
model:
  detector: retinanet
  anchors: {size: 2.5}                        # from 20 px at stride 8: a third of the digits is smaller than 32
""",
}


def make_digits(
    out: Path,
    train_images: int = 1000,
    val_images: int = 200,
    size_hw: tuple[int, int] = (320, 320),
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Write `out/{train,val}/*.jpg`, `out/{train,val}.json` (COCO) and the recipes `out/digits*.yaml`.

    The same seed gives the same bytes on the same machine. Raises `RecipeError` when `out` already
    holds files or a number is out of range.
    """
    recipe = for_pictures(RECIPE, size_hw)
    train, val = load_material(TRAIN_SAMPLES), load_material(VAL_SAMPLES)
    info = {
        "description": "isodet digits: handwritten digits on photographs, generated",
        "version": "1",
        "parameters": {"seed": seed, "size_hw": list(size_hw), "train_images": train_images, "val_images": val_images},
        "digits": "Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine Learning "
        "Repository, CC BY 4.0 (https://archive.ics.uci.edu/dataset/80), as distributed with scikit-learn",
        "photographs": train.credit,  # their credit, in scikit-learn's own words
        "changes": "photographs cropped, scaled, mirrored and re-lit; digits upsampled, deformed and colored",
    }
    licenses = [{"id": 1, "name": "CC BY 2.0 (photographs), CC BY 4.0 (digits): see info for whom to credit",
                 "url": "https://creativecommons.org/licenses/by/2.0/"}]  # fmt: skip
    splits = {
        "train": (train_images, lambda i: draw_scene(train, size_hw, np.random.default_rng([seed, 0, i]))),
        "val": (val_images, lambda i: draw_scene(val, size_hw, np.random.default_rng([seed, 1, i]))),
    }
    names = [str(d) for d in range(10)]
    write_dataset(out, splits, names, info, licenses, {"digits.yaml": recipe, **VARIANTS}, progress)


def draw_scene(material: Material, size_hw: tuple[int, int], rng: np.random.Generator) -> Scene:
    """One picture: a piece of photograph, up to 8 digits, some partly covered, some noise or blur."""
    image = background(material, size_hw, rng)
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    if rng.random() >= EMPTY_SHARE:
        ink = _Ink(size_hw)
        for _ in range(int(rng.integers(1, 9))):
            sample = int(rng.integers(len(material.labels)))
            low, high = HEIGHT_RANGE
            height = float(np.exp(rng.uniform(np.log(low), np.log(min(high, 0.6 * min(size_hw))))))
            mask = render_glyph(material.glyphs[sample], height, rng)
            corner = _free_place(ink, mask, rng)
            if corner is None:  # a crowded picture: go on with what fits
                continue
            boxes.append(ink.add(mask, corner))
            labels.append(int(material.labels[sample]))
            x0, y0, x1, y1 = window(mask.shape, corner, image.shape)
            color = contrasting_color(image[y0:y1, x0:x1], rng)
            paint(image, mask, stroke_texture(mask.shape, color, rng), corner)
        if rng.random() < 0.25 and boxes:
            _cover(image, ink, boxes[int(rng.integers(len(boxes)))], material, rng)
    image, quality = _degrade(image, rng)
    return Scene(image, np.array(boxes, np.int64).reshape(-1, 4), np.array(labels, np.int64), quality)


class _Ink:
    """Which digit each pixel belongs to, so that no digit is covered too much."""

    def __init__(self, size_hw: tuple[int, int]) -> None:
        self.owner = np.full(size_hw, -1, np.int32)
        self.full: list[int] = []

    def leaves_all_visible(self, stamp: npt.NDArray[np.bool_], corner: tuple[int, int]) -> bool:
        """Whether every digit keeps MIN_VISIBLE of its ink when `stamp` covers pixels from `corner`."""
        x0, y0, x1, y1 = window(stamp.shape, corner, self.owner.shape)
        if x1 <= x0 or y1 <= y0 or not self.full:
            return True
        inside = stamp[y0 - corner[0] : y1 - corner[0], x0 - corner[1] : x1 - corner[1]]
        covered = np.bincount(self.owner[y0:y1, x0:x1][inside] + 1, minlength=len(self.full) + 1)[1:]
        visible = np.bincount(self.owner.ravel() + 1, minlength=len(self.full) + 1)[1:] - covered
        return bool(np.all(visible >= MIN_VISIBLE * np.array(self.full)))

    def add(self, mask: Mask, corner: tuple[int, int]) -> tuple[int, int, int, int]:
        """Let `mask` own its pixels; returns its tight box, clipped to the picture."""
        self.full.append(int((mask >= 0.5).sum()))
        self.stamp(mask >= 0.5, corner, len(self.full) - 1)
        return window(mask.shape, corner, self.owner.shape)

    def stamp(self, stamp: npt.NDArray[np.bool_], corner: tuple[int, int], owner: int) -> None:
        x0, y0, x1, y1 = window(stamp.shape, corner, self.owner.shape)
        inside = stamp[y0 - corner[0] : y1 - corner[0], x0 - corner[1] : x1 - corner[1]]
        self.owner[y0:y1, x0:x1][inside] = owner


def _free_place(ink: _Ink, mask: Mask, rng: np.random.Generator) -> tuple[int, int] | None:
    """A (y, x) corner for `mask`: mostly clear of other digits and of the border, else None."""
    (height, width), (h, w) = ink.owner.shape, mask.shape
    may_overlap, may_leave = rng.random() < 0.3, rng.random() < 0.12
    for _ in range(30):
        over = 0.35 if may_leave else 0.0
        y = int(rng.integers(-int(over * h), max(height - h + int(over * h), 0) + 1))
        x = int(rng.integers(-int(over * w), max(width - w + int(over * w), 0) + 1))
        x0, y0, x1, y1 = window(mask.shape, (y, x), ink.owner.shape)
        stamp = mask >= 0.5
        shown = stamp[y0 - y : y1 - y, x0 - x : x1 - x].sum()
        if shown < 0.6 * stamp.sum():
            continue
        if not may_overlap and (ink.owner[max(y0 - 2, 0) : y1 + 2, max(x0 - 2, 0) : x1 + 2] >= 0).any():
            continue
        if ink.leaves_all_visible(stamp, (y, x)):
            return y, x
    return None


def _cover(
    image: Image, ink: _Ink, box: tuple[int, int, int, int], material: Material, rng: np.random.Generator
) -> None:
    """Hide part of the digit in `box` behind a patch of photograph, if that leaves all of them visible."""
    x0, y0, x1, y1 = box
    for _ in range(10):
        h = max(3, int((y1 - y0) * rng.uniform(0.25, 0.6)))
        w = max(3, int((x1 - x0) * rng.uniform(0.25, 0.7)))
        y, x = int(rng.integers(y0 - h // 2, y1 - h // 2)), int(rng.integers(x0 - w // 2, x1 - w // 2))
        stamp = np.ones((h, w), np.bool_)
        if ink.leaves_all_visible(stamp, (y, x)):
            a0, b0, a1, b1 = window(stamp.shape, (y, x), ink.owner.shape)
            image[b0:b1, a0:a1] = background(material, (h, w), rng, most_shrink=1.5)[b0 - y : b1 - y, a0 - x : a1 - x]
            ink.stamp(stamp, (y, x), -1)
            return


def _degrade(image: Image, rng: np.random.Generator) -> tuple[Image, int]:
    """Slight blur, sensor noise or stronger JPEG compression on some pictures; (image, JPEG quality)."""
    if rng.random() < 0.2:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 0.9)).astype(np.uint8)
    if rng.random() < 0.3:
        noise = rng.standard_normal(image.shape, np.float32) * rng.uniform(3, 12)
        image = np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)
    quality = int(rng.integers(55, 85)) if rng.random() < 0.2 else 92
    return image, quality
