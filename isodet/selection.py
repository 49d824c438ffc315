"""A selection of items, for pictures or measurements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def evenly_spread(items: Sequence[T], count: int) -> list[T]:
    """`count` of the items at even distances, with the first and the last; all items where there are no more.

    They keep their order. A `count` of 1 gives the first item.
    """
    count = min(count, len(items))
    if count < 2:
        return list(items[:count])
    last = len(items) - 1
    return [items[round(i * last / (count - 1))] for i in range(count)]
