"""Folding a rewritten network: int8 weights, and one rounding of a tensor where several do the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from torch import fx, nn

from models.quant.convolution import IntConv2d, QuantConv2d, Use
from models.quant.fake_quant import FakeQuant, UintFakeQuant
from models.quant.placement import operand, replace


def merge(graph: fx.GraphModule) -> None:
    """One rounding of a tensor where several `FakeQuant`s do the same."""
    modules = dict(graph.named_modules())
    seen: defaultdict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node in list(graph.graph.nodes):
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, FakeQuant):
            continue
        for earlier in seen[operand(node)]:
            first = modules[str(earlier.target)]
            if isinstance(first, FakeQuant) and first.same_as(module):
                node.replace_all_uses_with(earlier)
                graph.graph.erase_node(node)
                break
        else:
            seen[operand(node)].append(node)


def fold_convolutions(graph: fx.GraphModule) -> None:
    """Convolutions whose weights are rounded become `IntConv2d`s."""
    modules = dict(graph.named_modules())
    calls: defaultdict[str, list[fx.Node]] = defaultdict(list)
    for node in graph.graph.nodes:
        if node.op == "call_module" and isinstance(modules[str(node.target)], QuantConv2d):
            calls[str(node.target)].append(node)
    for name, nodes in calls.items():
        conv = modules[name]
        assert isinstance(conv, QuantConv2d)
        if not conv.enabled:
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
    source = operand(node)
    rounding = modules.get(str(source.target)) if source.op == "call_module" else None
    # The convolutions of a CPU add their bias as whole numbers, those of a GPU in float.
    whole = rounding.scale if isinstance(rounding, UintFakeQuant) and rounding.enabled else None
    return Use(gain, shift, whole)
