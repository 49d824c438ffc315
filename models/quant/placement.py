"""Rewriting a traced network: inserting its `FakeQuant`s, and finding those that share a range.

The rules are in `models.quant.graph`.
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
    """Replace `conv(x) * gain + shift` by `conv(x, gain, shift)` for every quantized convolution."""
    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        if calls(node, modules, nn.Identity):  # a folded BatchNorm
            node.replace_all_uses_with(operand(node))
            graph.graph.erase_node(node)
    for node in list(graph.graph.nodes):
        conv = modules.get(str(node.target))
        if not isinstance(conv, QuantConv2d):
            continue
        product = _only_user(node, operator.mul)
        total = None if product is None else _only_user(product, operator.add)
        if product is None or total is None:
            continue
        gain, shift = product.args[1], total.args[1]
        if all(_is_constant(graph, constant, conv.out_channels) for constant in (gain, shift)):
            total.replace_all_uses_with(node)
            total.prepend(node)  # moves it behind its new operands
            graph.graph.erase_node(total)
            graph.graph.erase_node(product)
            node.args = (operand(node), gain, shift)


def _only_user(node: fx.Node, function: Any) -> fx.Node | None:
    """The only operation that reads `node`, if it is `function` with `node` as its first operand."""
    users = list(node.users)
    if len(users) == 1 and users[0].op == "call_function" and users[0].target is function and users[0].args[0] is node:
        return users[0]
    return None


def _is_constant(graph: fx.GraphModule, node: object, channels: int) -> bool:
    """Whether `node` is a constant tensor [channels, 1, 1]."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return False
    value = getattr(graph, str(node.target), None)  # tracing makes constants attributes of the root module
    return isinstance(value, Tensor) and value.shape == (channels, 1, 1)


class Inserter:
    """Inserts the `FakeQuant`s of a traced graph, in one pass from the inputs to the outputs."""

    def __init__(self, graph: fx.GraphModule):
        self.graph = graph
        self.modules = dict(graph.named_modules())
        self.rounded: dict[fx.Node, fx.Node] = {}  # by tensor: its rounded form

    def run(self) -> None:
        for node in list(self.graph.graph.nodes):
            if calls(node, self.modules, QuantConv2d):
                node.args = (self._round(operand(node), node.name), *node.args[1:])
            elif self._is_sum(node):
                first, second = operand(node), operand(node, 1)
                if first in self.rounded and second not in self.rounded:  # the shortcut is the first operand
                    node.args = (self.rounded[first], second)
                else:
                    node.args = (first, self._round(second, node.name))

    def _round(self, node: fx.Node, reader: str) -> fx.Node:
        """The rounded form of `node`. The `FakeQuant` that it may need is named after `reader`, the first that asks."""
        if node not in self.rounded:
            source = node.args[0] if only_moves(node, self.modules) else None
            if isinstance(source, fx.Node):
                self.rounded[node] = self._copy(node, self._round(source, reader))
            else:
                target = f"fake_quants.{reader}"
                self.graph.add_submodule(target, FakeQuant())
                if isinstance(source, (list, tuple)):  # a concatenation: one FakeQuant for all parts
                    parts = [self._part(part, target) for part in source if isinstance(part, fx.Node)]
                    self.rounded[node] = self._copy(node, parts)
                else:
                    self.rounded[node] = self._call(node, target)
        return self.rounded[node]

    def _part(self, node: fx.Node, target: str) -> fx.Node:
        """A part of a concatenation, rounded by `target` in front of the operations that only move its numbers."""
        if not only_moves(node, self.modules) or not isinstance(node.args[0], fx.Node):
            return self._call(node, target)
        return self._copy(node, self._part(node.args[0], target))

    def _copy(self, node: fx.Node, rounded: Any) -> fx.Node:
        """A copy of the operation `node` that reads `rounded`."""
        with self.graph.graph.inserting_after(node):
            copy = self.graph.graph.node_copy(node)
        copy.args = (rounded, *node.args[1:])
        return copy

    def _call(self, node: fx.Node, target: str) -> fx.Node:
        with self.graph.graph.inserting_after(node):
            return self.graph.graph.call_module(target, (node,))

    def _is_sum(self, node: fx.Node) -> bool:
        """Whether `node` adds two feature maps, at least one of them computed by a convolution or rounded already.

        Constants and weighted sums stay in float.
        """
        terms = node.all_input_nodes
        return is_sum(node) and any(calls(term, self.modules, nn.Conv2d) or term in self.rounded for term in terms)


def calls(node: fx.Node, modules: Mapping[str, nn.Module], *kinds: type[nn.Module]) -> bool:
    """Whether `node` calls a module of one of `kinds`."""
    return node.op == "call_module" and isinstance(modules.get(str(node.target)), kinds)


def is_sum(node: fx.Node) -> bool:
    """Whether an operation adds two tensors."""
    return node.target in _ADDS and len(node.args) == 2 and all(isinstance(term, fx.Node) for term in node.args)


def only_moves(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether an operation computes no new numbers: its outputs are among its inputs, or 0, which every range has."""
    if node.target is F.interpolate:
        return bool(node.kwargs.get("mode", "nearest") == "nearest")
    moving = (torch.cat, torch.max_pool2d, F.max_pool2d)
    return node.target in moving or calls(node, modules, nn.MaxPool2d, nn.ZeroPad2d)


def moved(node: fx.Node) -> list[fx.Node]:
    """The tensors that an operation of `only_moves` reads."""
    source = node.args[0]
    parts = source if isinstance(source, (list, tuple)) else [source]
    return [part for part in parts if isinstance(part, fx.Node)]


# -------------------------------------------------------------------------------- which FakeQuant rounds which tensor


def tensors(graph: fx.GraphModule) -> dict[str, list[str]]:
    """By name of `fake_quants`, the tensors that it rounds: names of the operations that computed them.

    These names depend on the network alone, and not on which of its layers are quantized.
    """
    modules = dict(graph.named_modules())
    rounded: defaultdict[str, list[str]] = defaultdict(list)
    for node in graph.graph.nodes:
        if calls(node, modules, FakeQuant):
            name = str(node.target).removeprefix("fake_quants.")
            rounded[name] += [source for source in _origins(operand(node), modules) if source not in rounded[name]]
    return dict(rounded)


def _origins(node: fx.Node, modules: Mapping[str, nn.Module]) -> list[str]:
    """Names of the operations that computed the numbers of `node`, which may only round or move them."""
    if calls(node, modules, FakeQuant):
        return _origins(operand(node), modules)
    if only_moves(node, modules):
        return [name for part in moved(node) for name in _origins(part, modules)]
    return [node.name]


def roundings_of(graph: fx.GraphModule, layer: str) -> set[str]:
    """Names of the `fake_quants` that round the input of the convolution `layer`."""
    modules = dict(graph.named_modules())
    names: set[str] = set()
    stack = [operand(node) for node in graph.graph.nodes if node.op == "call_module" and node.target == layer]
    while stack:
        node = stack.pop()
        if calls(node, modules, FakeQuant):
            names.add(str(node.target).removeprefix("fake_quants."))
        elif only_moves(node, modules):
            stack += moved(node)
    return names


def groups(graph: fx.GraphModule) -> list[list[str]]:
    """Lists of names of `fake_quants` that need one common range: those connected by tensors that both round."""
    merged: list[tuple[set[str], set[str]]] = []  # names of fake_quants, and the tensors that these round
    for name, rounded in tensors(graph).items():
        members, names = {name}, set(rounded)
        for group in [group for group in merged if group[1] & names]:
            merged.remove(group)
            members, names = members | group[0], names | group[1]
        merged.append((members, names))
    return [sorted(members) for members, _ in merged]


def operand(node: fx.Node, index: int = 0) -> fx.Node:
    """The tensor that is operand `index` of an operation."""
    source = node.args[index]
    assert isinstance(source, fx.Node), f"{node} reads no tensor at {index}"
    return source


def replace(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in place of the submodule `name` of `root`."""
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module)
