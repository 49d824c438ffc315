"""The form of an 8-bit network that is fast on a CPU: uint8 from convolution to convolution.

An engine on a GPU is fastest with few roundings, all symmetric (`models.quant.graph`). ONNX Runtime's CPU kernels are
different: an operation runs in integers only if all its inputs and its output are rounded, and activations are uint8
with a zero point. So the output of every convolution (after its ReLU) and of every sum is rounded, and an operation
that only moves numbers has the same rounding before and after it. A concatenation and each of its parts have ranges of
their own, because a ReLU costs nothing only where its range starts at zero. The last predictions keep float weights and
outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import fx, nn

from models.quant.convolution import QuantConv2d
from models.quant.fake_quant import HIGH, FakeQuant, UintFakeQuant
from models.quant.graph import QuantDetector
from models.quant.observe import Ranges
from models.quant.placement import calls, is_sum, moved, only_moves, operand, tensors
from models.quant.ranges import METHODS

_RELUS = (F.relu, torch.relu)


def cpu_form(network: QuantDetector) -> QuantDetector:
    """A copy of `network` in the form for CPUs, its ranges not set yet.

    `QuantDetector.observe` on this form also finds all ranges that the form for GPUs needs.
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
    """The magnitude that becomes 127, for each tensor that `network` rounds: the ranges after training."""
    scales = {name: float(module.scale) for name, module in network.fake_quants.items()}
    return {tensor: scales[name] * HIGH for name, rounded in tensors(network.graph).items() for tensor in rounded}


def with_learned(ranges: Mapping[str, Ranges], learned: Mapping[str, float]) -> dict[str, Ranges]:
    """`ranges`, with the magnitudes of `learned` for all methods where it has the tensor."""
    return {
        name: Ranges(r.low, r.high, dict.fromkeys(METHODS, learned[name])) if name in learned else r
        for name, r in ranges.items()
    }


def _strip(graph: fx.GraphModule) -> None:
    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        if calls(node, modules, FakeQuant):
            node.replace_all_uses_with(operand(node))
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.fake_quants = nn.Module()


class _Rounding:
    """Inserts the roundings, in one pass from the inputs to the outputs."""

    def __init__(self, graph: fx.GraphModule):
        self.graph = graph
        self.modules = dict(graph.named_modules())
        self.target: dict[fx.Node, str] = {}  # the name of the FakeQuant that rounds a node's output

    def run(self) -> None:
        nodes = list(self.graph.graph.nodes)
        for node in nodes:
            convolution = self._is_convolution(node)
            if convolution or (is_sum(node) and any(self._is_computed(term) for term in node.all_input_nodes)):
                for source in [operand(node)] if convolution else node.all_input_nodes:
                    self._round(source)
                self._round(self._with_relu(node))
        for node in nodes:  # moving rounded numbers gives rounded numbers
            if only_moves(node, self.modules) and all(part in self.target for part in moved(node)):
                if len(moved(node)) == 1:
                    self._share([*moved(node), node])
                else:  # kernels can concatenate parts of different scales
                    self.target.setdefault(node, f"fake_quants.{node.name}")
        for target in dict.fromkeys(self.target.values()):
            self.graph.add_submodule(target, UintFakeQuant())
        for node, target in self.target.items():
            users = list(node.users)
            with self.graph.graph.inserting_after(node):
                rounding = self.graph.graph.call_module(target, (node,))
            for user in users:
                user.replace_input_with(node, rounding)

    def _round(self, node: fx.Node) -> None:
        """Round the output of `node`, and the tensors it reads if it only moves their numbers."""
        if only_moves(node, self.modules):
            for part in moved(node):
                self._round(part)
        self.target.setdefault(node, f"fake_quants.{node.name}")

    def _share(self, nodes: list[fx.Node]) -> None:
        """One FakeQuant for all of `nodes`."""
        merged = {self.target[node] for node in nodes if node in self.target}
        first = min(merged)
        for node in nodes:
            self.target.setdefault(node, first)
        self.target = {node: first if name in merged else name for node, name in self.target.items()}

    def _with_relu(self, node: fx.Node) -> fx.Node:
        """The ReLU that follows `node` if nothing else reads `node`, else `node`: kernels compute both at once."""
        users = list(node.users)
        if len(users) == 1 and (calls(users[0], self.modules, nn.ReLU) or users[0].target in _RELUS):
            return users[0]
        return node

    def _is_convolution(self, node: fx.Node) -> bool:
        return calls(node, self.modules, QuantConv2d)

    def _is_computed(self, node: fx.Node) -> bool:
        return self._is_convolution(node) or node in self.target
