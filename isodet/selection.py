"""Some of many, for a look or a measurement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def evenly_spread(items: Sequence[T], count: int) -> list[T]:
    """`count` of the items at even distances, the first and the last among them; all where there are no more.

    They keep their order. Of several, one alone is the first.
    """
    count = min(count, len(items))
    if count < 2:
        return list(items[:count])
    last = len(items) - 1
    return [items[round(i * last / (count - 1))] for i in range(count)]
