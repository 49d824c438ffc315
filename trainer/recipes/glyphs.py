"""Handwritten glyphs drawn as ink on photographs; the drawing behind the digits recipe."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from runtime.images.image import ImageError, read_image
from trainer.recipes.writer import RecipeError

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.float32]

# The samples are stored writer after writer (13 writers, some 138 samples each), so a random split
# would show every writer's hand in training. Training takes the first writers, validation the last,
# and 140 samples between them, more than one writer's share, are used by neither.
TRAIN_SAMPLES = range(0, 1297)
VAL_SAMPLES = range(1437, 1797)


@dataclass(frozen=True)
class Material:
    """The parts of pictures: `glyphs` float32 [S,8,8] in 0..1, `labels` [S], BGR photographs.

    `credit` is what scikit-learn says about the photographs' origin and license.
    """

    glyphs: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    photographs: tuple[Image, ...]
    credit: str


def load_material(samples: range) -> Material:
    """The glyphs of `samples` and both photographs. Raises `RecipeError` without scikit-learn, or without its data.

    The data is read from the installed package: importing scikit-learn would need SciPy and three more packages.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise RecipeError("the digits come with scikit-learn: pip install scikit-learn")
    datasets = Path(package.origin).parent / "datasets"
    try:
        rows = np.loadtxt(datasets / "data" / "digits.csv.gz", delimiter=",")  # 64 shades of 0 to 16, and the label
        photographs = tuple(read_image(datasets / "images" / name) for name in ("china.jpg", "flower.jpg"))
        credit = (datasets / "images" / "README.txt").read_text(encoding="utf-8")
    except (OSError, ImageError) as error:
        raise RecipeError(f"the digits that come with scikit-learn cannot be read: {error}; install it anew") from None
    rows = rows[samples.start : samples.stop]
    glyphs = (rows[:, :64].reshape(-1, 8, 8) / 16).astype(np.float32)
    return Material(glyphs, rows[:, 64].astype(np.int64), photographs, " ".join(credit.split()))


def render_glyph(glyph: npt.NDArray[np.float32], height: float, rng: np.random.Generator) -> Mask:
    """The 8x8 `glyph` as a crisp alpha mask [h,w] whose ink (alpha >= 0.5) is about `height` px tall.

    Rotated by up to 15 degrees, sheared and stretched a little; cropped to the ink, so the mask's own
    extent is the tight box.
    """
    angle, shear, aspect = np.deg2rad(rng.uniform(-15, 15)), rng.uniform(-0.2, 0.2), rng.uniform(0.85, 1.2)
    rotate = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    deform = rotate @ np.array([[1.0, shear], [0.0, 1.0]]) @ np.diag([aspect, 1.0])
    probe = _warp_glyph(glyph, 4.0, deform)  # how tall the deformed ink is, at a small scale
    return _warp_glyph(glyph, 4.0 * height / probe.shape[0], deform)


def _warp_glyph(glyph: npt.NDArray[np.float32], scale: float, deform: npt.NDArray[np.float64]) -> Mask:
    side = max(4, round(12 * scale))
    smooth = cv2.resize(np.pad(glyph, 2), (side, side), interpolation=cv2.INTER_CUBIC)
    canvas = round(side * 1.5)
    matrix = np.hstack([deform, (canvas / 2 - deform @ np.full(2, side / 2))[:, None]])
    warped = cv2.warpAffine(smooth, matrix, (canvas, canvas), flags=cv2.INTER_LINEAR)
    # A value is the share of its cell that ink covers. The edge is laid at 0.48: higher breaks thin
    # strokes apart, lower fills the holes of 6, 8 and 9. Its ramp is stretched to about 1.5 px at any size.
    alpha = np.clip((warped - 0.48) * max(scale / 1.5, 1.2) + 0.5, 0, 1).astype(np.float32)
    rows, columns = np.flatnonzero((alpha >= 0.5).any(1)), np.flatnonzero((alpha >= 0.5).any(0))
    if len(rows) == 0:
        raise RecipeError(f"a glyph without ink at scale {scale:.2f}")
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def paint(image: Image, mask: Mask, stroke: Pixels, corner: tuple[int, int]) -> None:
    """Blend `stroke` [h,w,3] into `image` through `mask` [h,w] at the (y, x) `corner`, in place."""
    x0, y0, x1, y1 = window(mask.shape, corner, image.shape[:2])
    y, x = corner
    alpha = mask[y0 - y : y1 - y, x0 - x : x1 - x, None]
    below = image[y0:y1, x0:x1].astype(np.float32)
    shown = stroke[y0 - y : y1 - y, x0 - x : x1 - x]
    image[y0:y1, x0:x1] = np.rint(below * (1 - alpha) + shown * alpha).astype(np.uint8)


def window(shape: tuple[int, ...], corner: tuple[int, int], size_hw: tuple[int, ...]) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the part of an array of `shape`, laid at (y, x) `corner`, that is in the picture."""
    y, x = corner
    return max(x, 0), max(y, 0), min(x + shape[1], size_hw[1]), min(y + shape[0], size_hw[0])


def stroke_texture(shape: tuple[int, ...], color: Pixels, rng: np.random.Generator) -> Pixels:
    """`color` [3] spread over [h,w,3] with some unevenness, as paint or chalk has."""
    coarse = rng.normal(1.0, rng.uniform(0.02, 0.12), (5, 5)).astype(np.float32)
    texture = cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)[:, :, None]
    return np.clip(color * texture, 0, 255).astype(np.float32)


def contrasting_color(below: npt.NDArray[np.generic], rng: np.random.Generator) -> Pixels:
    """A random BGR color that a person tells apart from the pixels `below` [h,w,3]."""
    to_luma = np.array([0.114, 0.587, 0.299], np.float32)
    low, high = np.percentile(below.astype(np.float32) @ to_luma, [15, 85])
    for _ in range(12):
        color = rng.uniform(0, 255, 3).astype(np.float32)
        luma = float(color @ to_luma)
        if luma < low - 60 or luma > high + 60:
            return color
    # The background spans most grays: near white or near black, whichever is farther away.
    near_white = 255 - high > low
    return rng.uniform(225, 255, 3).astype(np.float32) if near_white else rng.uniform(0, 30, 3).astype(np.float32)


def background(
    material: Material, size_hw: tuple[int, int], rng: np.random.Generator, most_shrink: float = 4.0
) -> Image:
    """A random piece of a photograph at `size_hw`, mirrored half of the time, darker or brighter.

    The photograph is made at most `most_shrink` times smaller.
    """
    photograph = material.photographs[int(rng.integers(len(material.photographs)))]
    (full_h, full_w), (height, width) = photograph.shape[:2], size_hw
    part = rng.uniform(0.35, 1.0) * min(full_h / height, full_w / width, most_shrink)
    h, w = max(1, int(height * part)), max(1, int(width * part))
    y, x = int(rng.integers(full_h - h + 1)), int(rng.integers(full_w - w + 1))
    piece = photograph[y : y + h, x : x + w]
    if rng.random() < 0.5:
        piece = piece[:, ::-1]
    method = cv2.INTER_AREA if h > height else cv2.INTER_LINEAR
    resized = cv2.resize(piece, (width, height), interpolation=method)
    return np.asarray(cv2.convertScaleAbs(resized, alpha=rng.uniform(0.55, 1.15), beta=rng.uniform(-15, 30)), np.uint8)
