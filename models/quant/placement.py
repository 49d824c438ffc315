"""Rewriting a traced network: where its `FakeQuant`s stand, and which of them belong together.

See `models.quant.graph` for the rules.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from models.quant.convolution import QuantConv2d
from models.quant.fake_quant import FakeQuant

_ADDS = (operator.add, operator.iadd, torch.add)


def absorb_level_affines(graph: fx.GraphModule) -> None:
    """`conv(x) * gain + shift` of a quantized convolution becomes `conv(x, gain, shift)`."""
    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and isinstance(modules[str(node.target)], nn.Identity):  # where a BatchNorm was
            node.replace_all_uses_with(operand(node))
            graph.graph.erase_node(node)
    for node in list(graph.graph.nodes):
        if node.op != "call_module" or not isinstance(modules[str(node.target)], QuantConv2d):
            continue
        channels = modules[str(node.target)].out_channels
        product = _only_user(node, operator.mul)
        total = None if product is None else _only_user(product, operator.add)
        if product is None or total is None:
            continue
        gain, shift = product.args[1], total.args[1]
        if all(_is_constant(graph, constant, channels) for constant in (gain, shift)):
            total.replace_all_uses_with(node)
            total.prepend(node)  # behind its new operands
            graph.graph.erase_node(total)
            graph.graph.erase_node(product)
            node.args = (operand(node), gain, shift)


def _only_user(node: fx.Node, function: Any) -> fx.Node | None:
    users = list(node.users)
    if len(users) == 1 and users[0].op == "call_function" and users[0].target is function and users[0].args[0] is node:
        return users[0]
    return None


def _is_constant(graph: fx.GraphModule, node: object, channels: int) -> bool:
    """Whether `node` is a tensor [channels, 1, 1] of the graph's own."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return False
    value = getattr(graph, str(node.target), None)  # constants of a trace are the root's own
    return isinstance(value, Tensor) and value.shape == (channels, 1, 1)


class Inserter:
    """Rewires a traced graph, once, front to back."""

    def __init__(self, graph: fx.GraphModule):
        self.graph = graph
        self.modules = dict(graph.named_modules())
        self.rounded: dict[fx.Node, fx.Node] = {}  # a tensor, and its rounded form

    def run(self) -> None:
        for node in list(self.graph.graph.nodes):
            if self._is(node, QuantConv2d):
                node.args = (self._round(operand(node), node.name), *node.args[1:])
            elif self._is_sum(node):
                first, second = operand(node), operand(node, 1)
                if first in self.rounded and second not in self.rounded:  # a shortcut that comes first
                    node.args = (self.rounded[first], second)
                else:
                    node.args = (first, self._round(second, node.name))

    def _round(self, node: fx.Node, reader: str) -> fx.Node:
        """`node` rounded, for `reader` and whoever asks next."""
        if node in self.rounded:
            return self.rounded[node]
        moved = self._moved(node, reader) if self._only_moves(node) else self._fake_quant(node, reader)
        self.rounded[node] = moved
        return moved

    def _moved(self, node: fx.Node, reader: str) -> fx.Node:
        """A copy of `node`, which only moves numbers, that reads rounded ones."""
        source = node.args[0]
        if isinstance(source, (list, tuple)):  # a concatenation: one range for all of its parts
            self.graph.add_submodule(f"fake_quants.{reader}", FakeQuant())
            rounded: Any = [self._part(part, f"fake_quants.{reader}") for part in source if isinstance(part, fx.Node)]
        else:
            rounded = self._round(operand(node), reader)
        with self.graph.graph.inserting_after(node):
            copy = self.graph.graph.node_copy(node)
        copy.args = (rounded, *node.args[1:])
        return copy

    def _part(self, node: fx.Node, target: str) -> fx.Node:
        """A part of a concatenation, rounded by `target`, before what moves it."""
        if not self._only_moves(node) or not isinstance(node.args[0], fx.Node):
            return self._call(node, target)
        rounded = self._part(node.args[0], target)
        with self.graph.graph.inserting_after(node):
            copy = self.graph.graph.node_copy(node)
        copy.args = (rounded, *node.args[1:])
        return copy

    def _fake_quant(self, node: fx.Node, reader: str) -> fx.Node:
        self.graph.add_submodule(f"fake_quants.{reader}", FakeQuant())
        return self._call(node, f"fake_quants.{reader}")

    def _call(self, node: fx.Node, target: str) -> fx.Node:
        with self.graph.graph.inserting_after(node):
            return self.graph.graph.call_module(target, (node,))

    def _is(self, node: fx.Node, kind: type[nn.Module]) -> bool:
        return node.op == "call_module" and isinstance(self.modules.get(str(node.target)), kind)

    def _is_sum(self, node: fx.Node) -> bool:
        """Of two feature maps of which a convolution made at least one; constants and weighted sums stay in float."""
        return is_sum(node) and any(self._is(term, nn.Conv2d) or term in self.rounded for term in node.all_input_nodes)

    def _only_moves(self, node: fx.Node) -> bool:
        return only_reorders(node, self.modules)


def is_sum(node: fx.Node) -> bool:
    """Whether an operation adds two tensors."""
    return (
        node.op == "call_function" and node.target in _ADDS and len(node.args) == 2
        and all(isinstance(term, fx.Node) for term in node.args)
    )  # fmt: skip


def only_reorders(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether an operation's numbers are all numbers of its input."""
    if node.op == "call_module":
        return isinstance(modules.get(str(node.target)), nn.MaxPool2d)
    if node.op != "call_function":
        return False
    if node.target is F.interpolate:
        return bool(node.kwargs.get("mode", "nearest") == "nearest")
    return node.target in (torch.cat, torch.max_pool2d, F.max_pool2d)


def moved(node: fx.Node) -> list[fx.Node]:
    """The tensors whose numbers an operation moves."""
    source = node.args[0]
    parts = source if isinstance(source, (list, tuple)) else [source]
    return [part for part in parts if isinstance(part, fx.Node)]


# -------------------------------------------------------------------------------- what is rounded by what


def tensors(graph: fx.GraphModule) -> dict[str, list[str]]:
    """What each of `fake_quants` rounds: names of operations, which depend on the network alone and not on what of it
    is quantized.
    """
    modules = dict(graph.named_modules())
    found: defaultdict[str, list[str]] = defaultdict(list)
    for node in graph.graph.nodes:
        if node.op == "call_module" and isinstance(modules[str(node.target)], FakeQuant):
            name = str(node.target).removeprefix("fake_quants.")
            found[name] += [source for source in _origins(operand(node), modules) if source not in found[name]]
    return dict(found)


def _origins(node: fx.Node, modules: Mapping[str, nn.Module]) -> list[str]:
    """The operations that computed what `node` only rounds or moves."""
    if is_rounded(node, modules):
        return _origins(operand(node), modules)
    if only_reorders(node, modules):
        return [name for part in moved(node) for name in _origins(part, modules)]
    return [node.name]


def roundings_of(graph: fx.GraphModule, layer: str) -> set[str]:
    """Names of the `fake_quants` that round what the convolution `layer` reads."""
    modules = dict(graph.named_modules())
    found: set[str] = set()
    waiting = [operand(node) for node in graph.graph.nodes if node.op == "call_module" and node.target == layer]
    while waiting:
        node = waiting.pop()
        if is_rounded(node, modules):
            found.add(str(node.target).removeprefix("fake_quants."))
        elif only_reorders(node, modules):
            waiting += moved(node)
    return found


def is_rounded(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(modules[str(node.target)], FakeQuant)


def groups(graph: fx.GraphModule) -> list[list[str]]:
    """Names of `fake_quants` that have one range: those that round a tensor in common, and who shares one with them."""
    joined: list[tuple[set[str], set[str]]] = []
    for name, read in tensors(graph).items():
        members, names = {name}, set(read)
        for other in [pair for pair in joined if pair[1] & names]:
            joined.remove(other)
            members, names = members | other[0], names | other[1]
        joined.append((members, names))
    return [sorted(members) for members, _ in joined]


def operand(node: fx.Node, index: int = 0) -> fx.Node:
    """The tensor that is operand `index` of an operation."""
    found = node.args[index]
    assert isinstance(found, fx.Node), f"{node} reads no tensor at {index}"
    return found


def replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module)
