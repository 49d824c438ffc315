"""Folding a quantized network: int8 weights, and a single rounding where several round a tensor in the same way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from torch import fx, nn

from models.quant.convolution import IntConv2d, QuantConv2d, Use
from models.quant.fake_quant import FakeQuant, UintFakeQuant
from models.quant.placement import operand, replace


def merge(graph: fx.GraphModule) -> None:
    """Keep the first of several `FakeQuant`s that round a tensor in the same way."""
    modules = dict(graph.named_modules())
    kept: defaultdict[fx.Node, list[tuple[fx.Node, FakeQuant]]] = defaultdict(list)
    for node in list(graph.graph.nodes):
        module = modules.get(str(node.target))
        if not isinstance(module, FakeQuant):
            continue
        equal = next((earlier for earlier, rounding in kept[operand(node)] if rounding.same_as(module)), None)
        if equal is None:
            kept[operand(node)].append((node, module))
        else:
            node.replace_all_uses_with(equal)
            graph.graph.erase_node(node)


def fold_convolutions(graph: fx.GraphModule) -> None:
    """Replace convolutions whose weights are rounded by `IntConv2d`s."""
    modules = dict(graph.named_modules())
    nodes_of: defaultdict[str, list[fx.Node]] = defaultdict(list)
    for node in graph.graph.nodes:
        nodes_of[str(node.target)].append(node)
    for name, nodes in nodes_of.items():
        conv = modules.get(name)
        if not isinstance(conv, QuantConv2d) or not conv.enabled:
            continue
        uses = [_use(graph, node, modules) for node in nodes]
        if all(use.gain is None and use.input_scale is None for use in uses):
            replace(graph, name, conv.fuse())
            continue
        replace(graph, name, IntConv2d(conv, uses))
        for i, node in enumerate(nodes):
            node.args = (operand(node), i)
    graph.graph.eliminate_dead_code()


def _use(graph: fx.GraphModule, node: fx.Node, modules: Mapping[str, nn.Module]) -> Use:
    constants = [getattr(graph, str(arg.target)) for arg in node.args[1:] if isinstance(arg, fx.Node)]
    gain, shift = constants or (None, None)
    rounding = modules.get(str(operand(node).target))
    # Convolutions on a CPU add their bias as integers, those on a GPU in float.
    input_scale = rounding.scale if isinstance(rounding, UintFakeQuant) and rounding.enabled else None
    return Use(gain, shift, input_scale)
