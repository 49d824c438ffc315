"""Drawing detections on frames, and pictures on a contact sheet."""

from __future__ import annotations

import colorsys
import functools
import logging
import unicodedata
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from isodet.errors import ArgumentError
from runtime.detections import Detections
from runtime.images.image import FILL, Image, letterbox

_log = logging.getLogger(__name__)

Color = tuple[int, int, int]
"""Blue, green, red, 0..255."""

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_DRAWS_UNICODE = int(cv2.__version__.split(".")[0]) >= 5
_PLAIN = str.maketrans({
    "ł": "l", "Ł": "L", "ø": "o", "Ø": "O", "đ": "d", "Đ": "D", "ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE",
    "ı": "i", "þ": "th", "Þ": "Th", "ð": "d", "–": "-", "—": "-", "’": "'",
})  # fmt: skip
"""Letters that Unicode does not decompose into a plain letter and a mark."""


def drawable(text: str) -> str:
    """`text` as OpenCV can draw it.

    OpenCV 5 draws Latin, Cyrillic, Greek, Arabic and CJK; earlier versions draw ASCII only. Other letters lose their
    accents or become their code points (`\\u0e44`), so that two names never look the same; a warning is logged once.
    """
    text = "".join(c if c.isprintable() else " " for c in text)
    plain = transliterated(text, lambda letter: _DRAWS_UNICODE and _has_glyph(letter))
    if plain != text:
        _tell_of_letters(cv2.__version__)
    return plain


def transliterated(text: str, has_glyph: Callable[[str], bool]) -> str:
    """`text`, in which letters without a glyph, and not ASCII, lose their accents or become their code points."""
    return "".join(c if c.isascii() or has_glyph(c) else _plain(c) for c in text)


def _plain(letter: str) -> str:
    parts = unicodedata.normalize("NFKD", letter.translate(_PLAIN))
    if parts[0].isascii():
        return "".join(c if c.isascii() else _code(c) for c in parts if not unicodedata.combining(c))
    return _code(letter)  # undivided, since a Korean syllable has two or three parts


def _code(letter: str) -> str:
    return letter.encode("ascii", "backslashreplace").decode("ascii")


@functools.lru_cache(4096)
def _has_glyph(letter: str) -> bool:
    """Whether it looks different from a letter that no font has."""
    return not np.array_equal(_glyph(letter), _glyph("\ue000"))


def _glyph(letter: str) -> Image:
    canvas = np.zeros((48, 96, 3), np.uint8)
    cv2.putText(canvas, letter, (8, 36), _FONT, 1.0, (255, 255, 255), 1, cv2.LINE_AA)
    return canvas


@functools.cache
def _tell_of_letters(version: str) -> None:
    more = "" if _DRAWS_UNICODE else "; OpenCV 5 draws most scripts"
    _log.warning("OpenCV %s has not all letters of these names: some are drawn as their code points%s", version, more)


def class_color(label: int) -> Color:
    """The color of a class: the same for a label in every picture; neighboring labels are far apart."""
    hue = (label * 0.618034 + 0.58) % 1.0  # golden-ratio steps never come close to an earlier hue for long
    saturation, value = ((0.85, 0.95), (0.65, 1.0), (0.95, 0.75))[label // 8 % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(blue * 255), round(green * 255), round(red * 255)


def draw_detections(
    frame: Image, detections: Detections, scores: bool = True, tracks: Sequence[int] | None = None
) -> Image:
    """A copy of `frame` (uint8 [H, W, 3] BGR) with each box and a chip of its class name and score.

    Lines and letters grow with the frame; chips stay inside it. The best detection is drawn last, on top.
    `scores=False` leaves the score out, for ground truth. `tracks`: [D] numbers of tracked objects, -1 for none; an
    object is then drawn in its own color, with its number.
    """
    numbers = [-1] * len(detections) if tracks is None else list(tracks)
    texts, colors = [], []
    for d, number in zip(detections, numbers, strict=True):
        texts.append((f"#{number} " if number >= 0 else "") + (f"{d.name} {d.score:.0%}" if scores else d.name))
        colors.append(class_color(number if number >= 0 else d.label))
    return draw_boxes(frame, detections.boxes_xyxy.tolist(), texts, colors)


def draw_boxes(
    frame: Image, boxes_xyxy: Sequence[Sequence[float]], texts: Sequence[str], colors: Sequence[Color]
) -> Image:
    """A copy of `frame` (uint8 [H, W, 3] BGR) with each box in its color and its text on a chip; the first on top."""
    image = np.ascontiguousarray(frame).copy()
    height, width = image.shape[:2]
    line = max(1, round(min(height, width) / 320))
    for box, text, color in list(zip(boxes_xyxy, texts, colors, strict=True))[::-1]:
        x1, y1, x2, y2 = (round(v) for v in box)
        corner = (min(width - 1, x2), min(height - 1, y2))
        cv2.rectangle(image, (x1, y1), corner, color, line, cv2.LINE_8)
        _chip(image, text, (x1, y1), color, line)
    return image


def _chip(image: Image, text: str, anchor_xy: tuple[int, int], color: Color, line: int) -> None:
    """`text` on a filled rectangle, above the anchor where there is room, else below it; never outside."""
    height, width = image.shape[:2]
    text = drawable(text)
    scale = max(0.35, min(height, width) / 1100)
    thickness = max(1, line // 2)
    (text_w, text_h), below = cv2.getTextSize(text, _FONT, scale, thickness)
    pad = max(2, line)
    chip_w, chip_h = text_w + 2 * pad, text_h + below + 2 * pad
    x = max(0, min(anchor_xy[0] - line // 2, width - chip_w))
    y = anchor_xy[1] - chip_h if anchor_xy[1] >= chip_h else anchor_xy[1]
    y = max(0, min(y, height - chip_h))
    cv2.rectangle(image, (x, y), (min(width, x + chip_w) - 1, min(height, y + chip_h) - 1), color, cv2.FILLED)
    luma = 0.114 * color[0] + 0.587 * color[1] + 0.299 * color[2]
    ink = (0, 0, 0) if luma > 130 else (255, 255, 255)
    cv2.putText(image, text, (x + pad, y + pad + text_h), _FONT, scale, ink, thickness, cv2.LINE_AA)


def sheet(
    images: Sequence[Image], columns: int, cell_hw: tuple[int, int], captions: Sequence[str] | None = None
) -> Image:
    """One picture with `images` (uint8 [h, w, 3] BGR, any sizes) in rows of `columns` cells of `cell_hw` pixels.

    Each picture is fitted into its cell with its aspect kept; its caption is on a strip at the cell's
    bottom. Raises ValueError for no images, no columns, or captions that do not match in number.
    """
    if not images or columns < 1 or min(cell_hw) < 16:
        raise ArgumentError.of(
            "sheet",
            "expected at least one image, one column and cells of 16x16 pixels; "
            f"got {len(images)} images, {columns} columns, cells {cell_hw}",
        )
    if captions is not None and len(captions) != len(images):
        raise ArgumentError.of("sheet", f"expected {len(images)} captions, one for each image, got {len(captions)}")
    gap = 4
    height, width = cell_hw
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 32, np.uint8)
    strip = min(height // 3, max(14, height // 16)) if captions is not None else 0
    for i, image in enumerate(images):
        y, x = gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap)
        cell, placement = letterbox(image, (height - strip, width))
        cell[placement.resized_hw[0] :] = 32
        cell[:, placement.resized_hw[1] :] = 32
        canvas[y : y + height - strip, x : x + width] = cell
        if captions is not None:
            _caption(canvas[y + height - strip : y + height, x : x + width], captions[i])
    return canvas


def _caption(strip: Image, text: str) -> None:
    text = drawable(text)
    scale = strip.shape[0] / 34
    while len(text) > 1 and cv2.getTextSize(text, _FONT, scale, 1)[0][0] > strip.shape[1] - 4:
        text = text[:-2] + "~"
    cv2.putText(strip, text, (2, round(strip.shape[0] * 0.72)), _FONT, scale, (FILL * 2,) * 3, 1, cv2.LINE_AA)
