"""Batch sizes that are worth recording: a recording is of one size, and every size in between is padded to it."""

from __future__ import annotations


def bucket_of(count: int, least: int = 1, most: int | None = None) -> int:
    """The bucket for `count` images, from `least` on: 1, 2, 3, 4, 6, 8, 12, 16, 24, ... and `most`.

    Powers of two and the middle between two of them: at most a third of a padded batch is padding, and 1 to 64 need
    12 recordings.
    """
    if most is not None and count > most:
        raise ValueError(f"expected at most {most} images, got {count}")
    power = 1 << max(0, (max(count, 1) - 1).bit_length())
    middle = power * 3 // 4
    size = middle if power >= 4 and max(count, 1) <= middle else power
    return max(least, size if most is None else min(size, most))
