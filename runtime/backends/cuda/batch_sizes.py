"""Batch sizes of recordings (CUDA graphs). A recording has one batch size; smaller batches are padded to it."""

from __future__ import annotations


def bucket_of(count: int, least: int = 1, most: int | None = None) -> int:
    """The batch size to run `count` images in, at least `least`: 1, 2, 3, 4, 6, 8, 12, 16, 24, ... or `most`.

    These are the powers of two and the middle between each two. So at most a third of a batch is padding, and batches
    of 1 to 64 need 12 recordings. Raises ValueError for more than `most` images.
    """
    if most is not None and count > most:
        raise ValueError(f"expected at most {most} images, got {count}")
    power = 1 << max(0, (max(count, 1) - 1).bit_length())
    middle = power * 3 // 4
    size = middle if power >= 4 and max(count, 1) <= middle else power
    return max(least, size if most is None else min(size, most))
