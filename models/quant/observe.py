"""What a network's tensors are like on pictures, from which the ranges of its integers follow."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from models.quant.fake_quant import FakeQuant
from models.quant.ranges import METHODS, Histogram, Method


@dataclass(frozen=True)
class Ranges:
    """Of one tensor, on the pictures that were observed."""

    low: float
    """The least value, 0 at most."""
    high: float
    """The largest, 0 at least."""
    magnitudes: Mapping[Method, float]
    """What becomes 127, by each method."""


def observe(
    graph: fx.GraphModule, wanted: Collection[str], batches: Iterable[Tensor], percentile: float
) -> tuple[dict[str, Ranges], int]:
    """Run `graph` on batches [B, ...] with no activation rounded; the `Ranges` of what the operations of the names
    `wanted` gave, and how many images there were.
    """
    counting = _Counting(graph, wanted)
    images = 0
    for batch in batches:
        counting.run(batch)
        images += len(batch)
    found = {}
    for name, histogram in counting.histograms.items():
        magnitudes = {method: histogram.range(method, percentile) for method in METHODS}
        found[name] = Ranges(histogram.lowest, histogram.highest, magnitudes)
    return found, images


class _Counting(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule, wanted: Collection[str]):
        super().__init__(graph)
        self.histograms = {name: Histogram() for name in wanted}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.histograms:
            self.histograms[n.name].add(value)
        return value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(self.submodules.get(str(target)), FakeQuant):
            return args[0]
        return super().call_module(target, args, kwargs)
