"""A short film of handwritten digits, for trying a detector without a camera."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from runtime.streams.video_writer import VideoError, VideoWriter
from trainer.recipes.glyphs import (
    VAL_SAMPLES,
    background,
    contrasting_color,
    load_material,
    paint,
    render_glyph,
    stroke_texture,
)
from trainer.recipes.writer import RecipeError


def digits_video(
    out: Path, seconds: float = 8, fps: int = 25, size_hw: tuple[int, int] = (480, 640), seed: int = 0
) -> None:
    """Write an MP4 in which digits by the validation writers drift over a slowly panning photograph.

    Raises `RecipeError` when a number is out of range or OpenCV cannot encode MP4.
    """
    if min(size_hw) < 64:
        raise RecipeError.of("size_hw", f"expected a height and width of at least 64 px, got {size_hw}")
    if out.suffix.lower() != ".mp4" or seconds <= 0 or fps < 1:
        raise RecipeError(f"expected an .mp4 path, seconds > 0 and fps >= 1, got {out}, {seconds}, {fps}")
    rng, material = np.random.default_rng([seed, 2]), load_material(VAL_SAMPLES)
    height, width = size_hw
    wide = background(material, (round(height * 1.2), round(width * 1.4)), rng)
    tall = 0.28 * min(size_hw)
    movers = []
    for label in rng.permutation(10)[:6]:  # all different: a person sees at once what is confused
        sample = int(rng.choice(np.flatnonzero(material.labels == label)))
        mask = render_glyph(material.glyphs[sample], rng.uniform(0.4, 1.0) * tall, rng)
        start = rng.uniform(0, 1, 2) * (height - mask.shape[0], width - mask.shape[1])
        speed = rng.uniform(0.1, 0.3, 2) * rng.choice([-1, 1], 2) * (height, width)  # pixels per second
        stroke = stroke_texture(mask.shape, contrasting_color(wide, rng), rng)
        movers.append((mask, stroke, start, speed))
    try:
        with VideoWriter(out, fps, live=False) as writer:
            for step in range(max(1, round(seconds * fps))):
                time = step / fps
                top = round((wide.shape[0] - height) * (0.5 + 0.5 * np.sin(0.4 * time)))
                left = round((wide.shape[1] - width) * (0.5 + 0.5 * np.sin(0.25 * time)))
                frame = wide[top : top + height, left : left + width].copy()
                for mask, stroke, start, speed in movers:
                    corner = _bounce(start + speed * time, (height - mask.shape[0], width - mask.shape[1]))
                    paint(frame, mask, stroke, corner)
                writer.write(frame, time)
    except VideoError as error:
        raise RecipeError(str(error), path=error.path) from None


def _bounce(position: npt.NDArray[np.float64], limit: tuple[int, int]) -> tuple[int, int]:
    """Fold a straight path back into 0..limit, as a ball between walls."""
    span = np.maximum(np.array(limit, np.float64), 1)
    folded = span - np.abs(position % (2 * span) - span)
    return round(folded[0]), round(folded[1])
