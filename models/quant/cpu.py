"""The form of an 8-bit network that is fast on a CPU: uint8 from convolution to convolution.

An engine on a GPU wants few roundings and symmetric ones (`models.quant.graph`). ONNX Runtime's CPU kernels want the
opposite: an operation runs in integers only where all its inputs are rounded and its output is rounded as well, and
activations are uint8 with a zero point. So every result of a convolution (behind its ReLU) and of a sum is rounded, and
what moves numbers has one rounding on both sides. A concatenation has a range of its own, and so have its parts: a ReLU
is free only where its range starts at zero. The last predictions keep float weights and results.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import fx, nn

from models.quant.convolution import QuantConv2d
from models.quant.fake_quant import HIGH, UintFakeQuant
from models.quant.graph import QuantDetector
from models.quant.observe import Ranges
from models.quant.placement import is_rounded, is_sum, moved, only_reorders, operand, tensors
from models.quant.ranges import METHODS

_RELUS = (F.relu, torch.relu)


def cpu_form(network: QuantDetector) -> QuantDetector:
    """A copy of `network` for CPUs, whose ranges are not known yet: see `QuantDetector.observe`, which for this form
    finds all that the other form needs, too.
    """
    form = copy.deepcopy(network)
    graph = form.graph
    _strip(graph)
    _Rounding(graph).run()
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
    form.share([[name] for name in tensors(graph)])
    return form.eval()


def learned_ranges(network: QuantDetector) -> dict[str, float]:
    """The magnitude that is 127 in each tensor that `network` rounds: what training has made of the ranges."""
    modules = network.fake_quants
    return {
        tensor: float(modules[name].scale) * HIGH for name, read in tensors(network.graph).items() for tensor in read
    }


def with_learned(ranges: Mapping[str, Ranges], learned: Mapping[str, float]) -> dict[str, Ranges]:
    """`ranges` with the magnitudes of `learned` where there are such, whatever the method."""
    return {
        name: Ranges(r.low, r.high, dict.fromkeys(METHODS, learned[name])) if name in learned else r
        for name, r in ranges.items()
    }


def _strip(graph: fx.GraphModule) -> None:
    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        if is_rounded(node, modules):
            node.replace_all_uses_with(operand(node))
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.fake_quants = nn.Module()


class _Rounding:
    """Puts the roundings in, once, front to back."""

    def __init__(self, graph: fx.GraphModule):
        self.graph = graph
        self.modules = dict(graph.named_modules())
        self.target: dict[fx.Node, str] = {}  # a tensor, and the FakeQuant that rounds it

    def run(self) -> None:
        nodes = list(self.graph.graph.nodes)
        for node in nodes:
            convolution = self._convolution(node)
            if convolution or (is_sum(node) and any(self._computed(term) for term in node.all_input_nodes)):
                for source in [operand(node)] if convolution else node.all_input_nodes:
                    self._want(source)
                self._want(self._result(node))
        for node in nodes:  # what moves rounded numbers gives rounded ones
            if only_reorders(node, self.modules) and all(part in self.target for part in moved(node)):
                if len(moved(node)) == 1:
                    self._join([*moved(node), node])
                else:  # kernels concatenate parts of different scales
                    self.target.setdefault(node, f"fake_quants.{node.name}")
        for target in dict.fromkeys(self.target.values()):
            self.graph.add_submodule(target, UintFakeQuant())
        for node, target in self.target.items():
            users = list(node.users)
            with self.graph.graph.inserting_after(node):
                rounding = self.graph.graph.call_module(target, (node,))
            for user in users:
                user.replace_input_with(node, rounding)

    def _want(self, node: fx.Node) -> None:
        """`node` is to be rounded, and so is what it only moves."""
        if only_reorders(node, self.modules):
            for part in moved(node):
                self._want(part)
        self.target.setdefault(node, f"fake_quants.{node.name}")

    def _join(self, nodes: list[fx.Node]) -> None:
        """One FakeQuant for all of `nodes`."""
        old = {self.target[node] for node in nodes if node in self.target}
        first = min(old)
        for node in nodes:
            self.target.setdefault(node, first)
        self.target = {node: first if name in old else name for node, name in self.target.items()}

    def _result(self, node: fx.Node) -> fx.Node:
        """`node`, or the ReLU that alone reads it: kernels do both at once."""
        users = list(node.users)
        relu = len(users) == 1 and (
            (users[0].op == "call_module" and isinstance(self.modules[str(users[0].target)], nn.ReLU))
            or (users[0].op == "call_function" and users[0].target in _RELUS)
        )
        return users[0] if relu else node

    def _convolution(self, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(self.modules[str(node.target)], QuantConv2d)

    def _computed(self, node: fx.Node) -> bool:
        return self._convolution(node) or node in self.target
