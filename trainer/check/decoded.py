"""What reading every picture of a data set shows: its bytes, its real size, and how it looks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from runtime.images.encoded import exif_orientation
from runtime.images.image import ImageError, decode_image
from trainer.check.near import picture_hash

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Decoded:
    """One picture file."""

    path: Path
    digest: str = ""
    """SHA-256 of the file; '' where it cannot be read."""
    size_hw: tuple[int, int] | None = None
    """Upright height and width; None for a broken picture."""
    orientation: int = 1
    """As EXIF has it."""
    look: int | None = None
    """The perceptual hash (`trainer.check.near`); None for a broken or a flat picture."""
    reason: str = ""
    """Why the picture is broken; ''."""


def decode_pictures(
    paths: Sequence[Path], progress: Progress | None = None, done: int = 0, total: int | None = None
) -> Iterator[Decoded]:
    """Decode each of `paths`, in their order, in threads.

    `progress` is called with (pictures done, pictures in all), counted from `done` where others came before.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoding releases Python's lock
        for count, picture in enumerate(pool.map(_decode, paths), start=1):
            yield picture
            if progress is not None:
                progress(done + count, len(paths) if total is None else total)


def _decode(path: Path) -> Decoded:
    try:
        data = path.read_bytes()
    except OSError as error:
        return Decoded(path, reason=f"cannot be read: {error.strerror}")
    digest = hashlib.sha256(data).hexdigest()
    try:
        image = decode_image(data, path)
    except ImageError as error:
        return Decoded(path, digest, reason=error.reason)
    return Decoded(path, digest, (image.shape[0], image.shape[1]), exif_orientation(data), picture_hash(image))
