"""Whether a graph has the input and the outputs that its card promises, for the engines that read ONNX files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from runtime.backends.protocol import OUTPUT_TYPES, input_layout, output_names
from runtime.card.card import Card, CardError


class Port(NamedTuple):
    """An input or output of a graph.

    dtype: numpy's name, such as float32; the engine's own for a type that numpy has not. shape: None for a free size.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] = ()

    def __str__(self) -> str:
        sizes = ", ".join("any" if size is None else str(size) for size in self.shape)
        return f"{self.name} {self.dtype}" + (f" [{sizes}]" if self.shape else "")


def check_graph(path: str | Path, card: Card, inputs: Sequence[Port], outputs: Sequence[Port]) -> int | None:
    """The fixed batch size of the graph at `path`, or None. Raises `CardError` where it is not what its card says."""
    shape, kind = input_layout(card)
    dtype = np.dtype(kind).name
    if len(inputs) != 1 or inputs[0].dtype != dtype or inputs[0].shape[1:] != shape:
        expected, got = f"{dtype} [B, {', '.join(map(str, shape))}]", ", ".join(map(str, inputs))
        raise CardError.at(path, f"expected one input, {expected}, as its card says; got {got}")
    types = {name: np.dtype(OUTPUT_TYPES[name]).name for name in output_names(card)}
    if {port.name: port.dtype for port in outputs} != types:
        expected = ", ".join(f"{name} {type_name}" for name, type_name in types.items())
        got = ", ".join(f"{port.name} {port.dtype}" for port in outputs)
        raise CardError.at(path, f"expected the outputs {expected}; got {got}")
    fixed = inputs[0].shape[0]
    if (fixed or "dynamic") != card.batch:
        raise CardError.at(path, f"{card.batch!r}, but the graph takes {fixed or 'any batch'}", key="batch")
    return fixed
