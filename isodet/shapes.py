"""Shapes of arrays and tensors, asserted where they enter a function. `python -O` leaves the assertions out."""

from __future__ import annotations

from collections.abc import Sequence
from types import EllipsisType
from typing import Any, Protocol


class Shaped(Protocol):
    """A NumPy array or a tensor."""

    @property
    def shape(self) -> Sequence[int]: ...


def assert_shape(name: str, value: Shaped, *expected: int | EllipsisType | None) -> None:
    """Raise `AssertionError` unless the shape of `value` is the `expected` one; the message has both.

    None stands for any length, and a first `...` for any number of dimensions. Where a graph is traced with a free
    batch, give None or `other.shape[0]` for it: a number such as `len(other)` would fix the batch.
    """
    assert _fits(value.shape, expected), f"{name}: expected the shape {_text(expected)}, got {_text(value.shape)}"


def _fits(shape: Sequence[int], expected: Sequence[Any]) -> bool:
    if expected and expected[0] is ...:
        expected = expected[1:]
        shape = shape[max(len(shape) - len(expected), 0) :]
    if len(shape) != len(expected):
        return False
    return all(wanted is None or length == wanted for length, wanted in zip(shape, expected, strict=True))


def _text(shape: Sequence[Any]) -> str:
    return f"[{', '.join('any' if d is None else '...' if d is ... else str(d) for d in shape)}]"
