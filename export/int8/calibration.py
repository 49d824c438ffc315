"""The pictures for calibration, on which the ranges of 8-bit activations are observed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.options import CalibrationError, Int8, Progress, Say
from isodet.selection import evenly_spread
from runtime.card.card import Card
from runtime.datasets import read_split
from runtime.datasets.annotations import DatasetError
from runtime.images.image import IMAGE_SUFFIXES, Image, ImageError, letterbox, read_image
from runtime.images.image_header import image_size
from runtime.images.picture_files import files_in, left_out_text, list_pictures
from runtime.tiles import Window

CORRECTION_PIXELS = 48 * 320 * 320
"""Pixels of the pictures for bias correction, which go through the network at once: each gives a mean over thousands of
cells, so that few are enough."""


@dataclass
class Pictures:
    """Picture files, spread evenly over a data set, letterboxed as the runtime does it.

    source: a description for people. tiles: of each path the tile that is looked at; () for whole pictures. notes:
    sentences about them that a user should know. used, unreadable: known after `batches` has read them.
    """

    paths: list[Path]
    source: str
    tiles: Sequence[Window] = ()
    notes: list[str] = field(default_factory=list)
    used: int = 0
    unreadable: list[ImageError] = field(default_factory=list)

    @classmethod
    def spread(cls, paths: Sequence[Path], card: Card, count: int, source: str) -> Pictures:
        """At most `count` of `paths`; or so many tiles of these, where the detector of `card` was trained on tiles."""
        chosen, rule = evenly_spread(paths, count), card.tiling()
        if rule is None:
            return cls(chosen, source)
        tiles = []
        for path in chosen:
            try:
                tiles += [(path, window) for window in rule.grid(image_size(path), card.tile_hw(rule)).windows]
            except ImageError:
                tiles.append((path, Window(0, 0, 0, 0)))  # reading it will say why it cannot be used
        tiles = evenly_spread(tiles, count)
        return cls([path for path, _ in tiles], source, [window for _, window in tiles])

    def batches(
        self, size_hw: tuple[int, int], progress: Progress | None = None, size: int = 8
    ) -> Iterator[torch.Tensor]:
        """Batches uint8 [B, H, W, 3], B at most `size`; unreadable files are left out and listed in `unreadable`."""
        self.used, self.unreadable = 0, []
        batch: list[Image] = []
        for done, path in enumerate(self.paths, start=1):
            try:
                image = read_image(path)
                if self.tiles:
                    x1, y1, x2, y2 = self.tiles[done - 1]
                    image = image[y1:y2, x1:x2]
                batch.append(letterbox(image, size_hw)[0])
                self.used += 1
            except ImageError as error:
                self.unreadable.append(error)
            if batch and (len(batch) == size or done == len(self.paths)):
                yield torch.from_numpy(np.stack(batch))
                batch = []
            if progress is not None:
                progress("calibration", done, len(self.paths))
        if batch:  # the last files could not be read
            yield torch.from_numpy(np.stack(batch))

    def report(self, asked: int, say: Say) -> None:
        """Say the notes, and how many were read. Raises `CalibrationError` if none could be read."""
        for note in self.notes:
            say(note)
        if self.unreadable:
            say(f"calibration: {len(self.unreadable)} pictures cannot be read, the first: {self.unreadable[0]}")
        if self.used == 0:
            raise CalibrationError.of(
                "calibration", f"none of the {len(self.paths)} pictures of {self.source} can be read"
            )
        if self.used < asked:
            say(f"calibration: {self.used} pictures of {self.source}, fewer than the {asked} asked for")


def correction_images(card: Card, checkpoint: Path, options: Int8, say: Say) -> torch.Tensor | None:
    """Some of the calibration pictures, uint8 [B, H, W, 3], for `models.quant.correct_biases`.

    None, which is said, where there are none: a file of ranges does without pictures, and so it may.
    """
    height, width = card.input_size_hw
    count = max(8, CORRECTION_PIXELS // (height * width))
    try:
        pictures = calibration_pictures(card, checkpoint, options.calibration, options.calibration_images, count)
        batches = list(pictures.batches(card.input_size_hw))
    except (CalibrationError, DatasetError) as error:
        if options.ranges is None:
            raise
        say(f"calibration: biases stay as they are, because there are no pictures: {error}")
        return None
    if not batches:
        say(f"calibration: biases stay as they are: none of {len(pictures.paths)} pictures can be read")
        return None
    return torch.cat(batches)


def calibration_pictures(
    card: Card, checkpoint: Path, annotations: Path | None, images: Path | None, count: int
) -> Pictures:
    """At most `count` pictures: of an annotation file and its folder, of a folder alone, or of the checkpoint's
    training set.

    Raises `CalibrationError` where there are none, `DatasetError` where the data set cannot be read.
    """
    if count < 1:
        raise CalibrationError.of("calibration", f"expected 1 or more pictures, got {count}")
    if annotations is None and images is not None:
        if not images.is_dir():
            raise CalibrationError.at(images, "no such folder of calibration pictures")
        paths, left_out = list_pictures(files_in(images))
        if not paths:
            others = f"; {left_out_text(left_out)}" if left_out else ""
            suffixes = ", ".join(IMAGE_SUFFIXES)
            raise CalibrationError.at(images, f"no picture in this calibration folder ({suffixes}){others}")
        return Pictures.spread(paths, card, count, str(images))
    splits: list[dict[str, Any]]
    if annotations is not None:
        splits = [{"annotations": str(annotations), "images": None if images is None else str(images)}]
    else:
        train = card.training.get("data", {}).get("train", {})
        splits = list(train) if isinstance(train, (list, tuple)) else [train]
        if not splits or any("annotations" not in split for split in splits):
            options = "--calibration FILE (--calibration-images FOLDER), or the folder alone"
            raise CalibrationError.at(checkpoint, f"its card names no training data to calibrate on; give {options}")
    paths, labels = [], set()
    for split in splits:
        dataset = read_split(split, card.classes, "train", allow_absent=True)
        paths += [record.path for record in dataset.records]
        labels |= {int(label) for record in dataset.records for label in np.unique(record.labels)}
    source = str(splits[0]["annotations"]) + (f" and {len(splits) - 1} others" if len(splits) > 1 else "")
    if not paths:
        raise CalibrationError.at(source, "no picture to calibrate on")
    notes = []
    if len(labels) <= 1 < len(card.classes):
        objects = f"only objects of the class {card.classes[labels.pop()]!r}" if labels else "no objects"
        notes.append(
            f"warning: calibration: {source} has {objects}, and the detector knows {len(card.classes)} classes; ranges "
            "that fit only those may cut off what the others need: calibrate on pictures of all"
        )
    return replace(Pictures.spread(paths, card, count, source), notes=notes)
