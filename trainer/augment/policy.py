"""TrivialAugment and AutoAugment, with boxes.

Geometric steps act on the picture, before the one resize; photometric steps on the input's pixels, after it, where
they cost less and have the same strength for every picture. Their order matters for the color of the fill only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.images.image import Image
from trainer.augment.color import PHOTOMETRIC
from trainer.augment.geometry import Picture, affine
from trainer.config.augment_sections import AutoConfig, TrivialConfig

Effect = Callable[[Image], Image]

SHEAR, SHIFT, TURN = 0.3, 0.3, 30.0
"""Largest shear, shift (share of the side) and turn (degrees) of `trivial`."""
_FACTOR = 0.9
_PAPER_SIDE = 640
"""The paper's shifts and squares are pixels of pictures of this side; here they are shares of the side."""

_TRIVIAL_COLOR = ("identity", "brightness", "contrast", "color", "sharpness", "autocontrast", "equalize", "posterize",
                  "solarize")  # fmt: skip
_TRIVIAL_GEOMETRY = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
_FACTORS = ("brightness", "contrast", "color", "sharpness")

V0 = (
    (("translate_x", 0.6, 4), ("equalize", 0.8, 10)),
    (("translate_y_boxes", 0.2, 2), ("cutout", 0.8, 8)),
    (("sharpness", 0.0, 8), ("shear_x", 0.4, 0)),
    (("shear_y", 1.0, 2), ("translate_y_boxes", 0.6, 6)),
    (("rotate", 0.6, 10), ("color", 1.0, 6)),
)
"""Zoph et al. 2019, table 2: (operation, probability, level 0..10)."""


class Step(NamedTuple):
    """One drawn step. Its strength: shear as such, shifts as a share of the side, turns in degrees, color -1..1."""

    name: str
    strength: float
    box_probability: float = 1.0
    """Of a step within boxes: the probability for each box."""


def trivial_steps(config: TrivialConfig, rng: np.random.Generator) -> list[Step]:
    """One operation, drawn evenly, at a strength drawn evenly from both directions."""
    names = _TRIVIAL_COLOR + (_TRIVIAL_GEOMETRY if config.geometric else ())
    name = names[rng.integers(len(names))]
    level = config.strength * float(rng.uniform(-1, 1))
    unit = {"shear": SHEAR, "translate": SHIFT, "rotate": TURN}.get(name.partition("_")[0])
    return [Step(name, level * (unit or (_FACTOR if name in _FACTORS else 1.0)))]


def auto_steps(config: AutoConfig, rng: np.random.Generator) -> list[Step]:
    """The steps of one sub-policy. A step within boxes changes a box with a third of its probability, as published."""
    policy = V0 if config.policy == "v0" else config.policy
    steps = []
    for name, probability, level in policy[rng.integers(len(policy))]:
        sign = 1.0 if rng.random() < 0.5 else -1.0
        within = name.endswith("_boxes")
        if within or rng.random() < probability:
            steps.append(Step(name, _strength(name, level / 10, sign), probability / 3 if within else 1.0))
    return steps


def _strength(name: str, level: float, sign: float) -> float:
    """The strength that AutoAugment gives to a level 0..1."""
    if name in _FACTORS:
        return level * 1.8 - 0.9  # a factor from 0.1 to 1.9; the sign is not drawn
    if name.startswith("translate"):
        return sign * level * (120 if name.endswith("_boxes") else 250) / _PAPER_SIDE
    if name.startswith("shear"):
        return sign * level * SHEAR
    if name.startswith("rotate"):
        return sign * level * TURN
    return level


def apply_to_picture(
    picture: Picture, steps: list[Step], fill_bgr: tuple[int, int, int], rng: np.random.Generator
) -> tuple[Picture, list[Effect]]:
    """`picture` after the geometric steps, and the photometric ones as effects for the input's pixels."""
    effects: list[Effect] = []
    for step in steps:
        if step.name == "cutout":
            half = step.strength * 100 / _PAPER_SIDE
            effects.append(partial(_cutout, half=half, center=rng.random(2), fill=fill_bgr))
        elif step.name in PHOTOMETRIC:
            effects.append(partial(_photometric, name=step.name, strength=step.strength))
        elif step.name.endswith("_boxes"):
            picture = _within_boxes(picture, step, fill_bgr, rng)
        else:
            picture = affine(picture, affine_matrix(step.name, step.strength, picture.size_hw), fill_bgr)
    return picture, effects


def _photometric(image: Image, name: str, strength: float) -> Image:
    return PHOTOMETRIC[name](image, strength)


def affine_matrix(name: str, strength: float, size_hw: tuple[int, int]) -> NDArray[np.float64]:
    """The map [2,3] of pixel edges; shears and turns keep the middle, shifts are whole pixels so that nothing blurs."""
    height, width = size_hw
    linear, shift = np.eye(2), np.zeros(2)
    kind, _, axis = name.partition("_")
    row = ("x", "y").index(axis) if axis else 0
    if kind == "shear":
        linear[row, 1 - row] = strength
    elif kind == "translate":
        shift[row] = round(strength * (width, height)[row])
    elif kind == "rotate":
        turn = np.deg2rad(strength)
        linear = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    else:
        raise ValueError(f"{name}: not a geometric operation")
    middle = np.array([width / 2, height / 2])
    return np.hstack([linear, (middle - linear @ middle + shift)[:, None]])


def _within_boxes(picture: Picture, step: Step, fill_bgr: tuple[int, int, int], rng: np.random.Generator) -> Picture:
    """Contents of boxes sheared, shifted, turned or equalized; the boxes themselves stay."""
    image = picture.image.copy()
    size_hw = height, width = picture.size_hw
    kind = step.name.removesuffix("_boxes")
    for box, label in zip(picture.boxes_xyxy, picture.labels, strict=True):
        hit = rng.random() < step.box_probability
        x0, y0 = (max(0, int(v)) for v in np.floor(box[:2]))
        x1, y1 = min(width, int(np.ceil(box[2]))), min(height, int(np.ceil(box[3])))
        if not hit or label < 0 or x1 <= x0 or y1 <= y0:
            continue
        part = Picture(image[y0:y1, x0:x1], np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
        if kind in PHOTOMETRIC:
            image[y0:y1, x0:x1] = PHOTOMETRIC[kind](part.image, step.strength)
            continue
        matrix = affine_matrix(kind, step.strength, (y1 - y0, x1 - x0))
        if kind.startswith("translate"):  # as published: a share of the picture, not of the box
            matrix[:, 2] = affine_matrix(kind, step.strength, size_hw)[:, 2]
        image[y0:y1, x0:x1] = affine(part, matrix, fill_bgr).image
    return picture._replace(image=image)


def _cutout(image: Image, half: float, center: NDArray[np.float64], fill: tuple[int, int, int]) -> Image:
    """A filled square of side 2 * half (a share of the sides) around `center` (x, y, shares)."""
    height, width = image.shape[:2]
    x, y = center * (width, height)
    out = image.copy()
    x0, x1 = round(x - half * width), round(x + half * width)
    y0, y1 = round(y - half * height), round(y + half * height)
    cv2.rectangle(out, (x0, y0), (x1 - 1, y1 - 1), fill, cv2.FILLED)
    return out
