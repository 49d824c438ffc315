"""Observing a network's tensors on pictures, which gives the ranges for quantization."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from models.quant.fake_quant import FakeQuant
from models.quant.ranges import METHODS, Histogram, Method


@dataclass(frozen=True)
class Ranges:
    """The range of one tensor on the observed pictures.

    low: its least value, at most 0. high: its largest, at least 0. magnitudes: by method, the magnitude that becomes
    127.
    """

    low: float
    high: float
    magnitudes: Mapping[Method, float]


def observe(
    graph: fx.GraphModule, names: Collection[str], batches: Iterable[Tensor], percentile: float
) -> tuple[dict[str, Ranges], int]:
    """Run `graph` on batches [B, ...] without rounding activations.

    names: of the operations whose outputs are observed. Gives the `Ranges` of each, and the number of images.
    """
    observer = _Observer(graph, names)
    images = 0
    for batch in batches:
        observer.run(batch)
        images += len(batch)
    ranges = {}
    for name, histogram in observer.histograms.items():
        magnitudes = {method: histogram.range(method, percentile) for method in METHODS}
        ranges[name] = Ranges(histogram.lowest, histogram.highest, magnitudes)
    return ranges, images


class _Observer(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule, names: Collection[str]):
        super().__init__(graph)
        self.histograms = {name: Histogram() for name in names}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.histograms:
            self.histograms[n.name].add(value)
        return value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(self.submodules.get(str(target)), FakeQuant):
            return args[0]
        return super().call_module(target, args, kwargs)
