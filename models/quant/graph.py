"""Where an 8-bit engine has integers: `FakeQuant`s put into a detector's folded graph.

Every convolution but the last predictions reads int8 and has an int8 weight. A tensor has one `FakeQuant`, which all of
its 8-bit readers share. What only moves or chooses numbers (pooling by maximum, enlarging, concatenation) happens on
integers: the `FakeQuant` stands before it. A sum's second operand is rounded, its first stays the unrounded result of a
convolution, which engines add inside that convolution's kernel.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from models.detector import Detector, Raw
from models.fuse import fuse, require_eval
from models.quant.fake_quant import FakeQuant, QuantConv2d
from models.quant.ranges import Method

PREDICTIONS = ("head.cls", "head.box", "head.quality")
_ADDS = (operator.add, operator.iadd, torch.add)


class QuantError(ValueError):
    """A network that cannot be quantised; the message says where and what to do."""


class QuantDetector(Detector):
    """A folded detector with `FakeQuant`s: the same `Raw` from the same pixels, 8-bit inside."""

    def __init__(self, detector: Detector, float_layers: Sequence[str] = ()):
        """Takes a folded detector over. `float_layers`: convolutions that stay as they are (see `layers`)."""
        nn.Module.__init__(self)
        self.config, self.pixels, self._priors = detector.config, detector.pixels, {}
        self.float_layers = tuple(float_layers)
        self.graph = _with_fake_quants(detector, self.float_layers)

    def network(self, x: Tensor) -> Raw:
        logits, boxes, quality = self.graph(x)
        return Raw(logits.float(), boxes.float(), None if quality is None else quality.float())

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor], method: Method = "mse", percentile: float = 99.99) -> int:
        """Set the ranges from what is seen on batches of images uint8 [B, H, W, 3]; returns how many images those were.

        percentile: of magnitudes inside the range, for that method. Raises `QuantError` where there is no image.
        """
        training, images = self.training, 0
        self.eval()
        for fake_quant in self.fake_quants.values():
            fake_quant.observe()
        for batch in batches:
            self(batch)
            images += len(batch)
        if images == 0:
            raise QuantError("calibration: expected images to observe, got none")
        for fake_quant in self.fake_quants.values():
            fake_quant.settle(method, percentile)
        self.train(training)
        return images

    @property
    def layers(self) -> dict[str, QuantConv2d]:
        """The convolutions that are quantised, by name in the order of their first use."""
        modules = dict(self.graph.named_modules())
        used = [str(node.target) for node in self.graph.graph.nodes if node.op == "call_module"]
        return {name: modules[name] for name in dict.fromkeys(used) if isinstance(modules[name], QuantConv2d)}

    @property
    def fake_quants(self) -> dict[str, FakeQuant]:
        """By the name of the operation that reads it first."""
        found = self.graph.get_submodule("fake_quants").named_children()
        return {name: module for name, module in found if isinstance(module, FakeQuant)}


def quantise(detector: Detector, float_layers: Sequence[str] = ()) -> QuantDetector:
    """A folded copy of `detector`, in eval mode, with `FakeQuant`s whose ranges are not known yet.

    float_layers: names of convolutions that stay in float besides the predictions. Raises `QuantError` for a network
    that cannot be traced or an unknown name, `FuseError` in train mode.
    """
    require_eval(detector)
    return QuantDetector(fuse(detector), float_layers).eval()


class _Body(nn.Module):
    """What is traced: normalised images [B, 3, H, W] to raw outputs."""

    def __init__(self, detector: Detector):
        super().__init__()
        self.backbone, self.neck, self.head = detector.backbone, detector.neck, detector.head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.head(self.neck(self.backbone(x)))


def _with_fake_quants(detector: Detector, float_layers: tuple[str, ...]) -> fx.GraphModule:
    try:
        graph = fx.symbolic_trace(_Body(detector))
    except Exception as error:  # tracing runs the network's own code on stand-ins, which may fail in any way
        raise QuantError(
            f"{detector.config.backbone.name}: cannot be traced for quantisation, because a decision in its forward "
            f"depends on values ({error}); use fp16, or a backbone with a fixed sequence of operations"
        ) from error
    convolutions = {name: module for name, module in graph.named_modules() if isinstance(module, nn.Conv2d)}
    if unknown := [name for name in float_layers if name not in convolutions]:
        raise QuantError(f"{unknown[0]} is no convolution of this network; the first are "
                         f"{', '.join(sorted(convolutions)[:4])}")  # fmt: skip
    for name, conv in convolutions.items():
        if name not in PREDICTIONS and name not in float_layers:
            _replace(graph, name, QuantConv2d(conv))
    _Inserter(graph).run()
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
    return graph


class _Inserter:
    """Rewires a traced graph, once, front to back."""

    def __init__(self, graph: fx.GraphModule):
        self.graph = graph
        self.modules = dict(graph.named_modules())
        self.rounded: dict[fx.Node, fx.Node] = {}  # a tensor, and its rounded form

    def run(self) -> None:
        for node in list(self.graph.graph.nodes):
            if self._is(node, nn.Identity):  # where a BatchNorm was
                node.replace_all_uses_with(_input(node))
                self.graph.graph.erase_node(node)
        for node in list(self.graph.graph.nodes):
            if self._is(node, QuantConv2d):
                node.args = (self._round(_input(node), node.name), *node.args[1:])
            elif self._is_sum(node):
                first, second = _input(node), _input(node, 1)
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
            shared = FakeQuant()
            self.graph.add_submodule(f"fake_quants.{reader}", shared)
            rounded: Any = [self._call(part, f"fake_quants.{reader}") for part in source if isinstance(part, fx.Node)]
        else:
            rounded = self._round(_input(node), reader)
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
        if node.op != "call_function" or node.target not in _ADDS or len(node.args) != 2:
            return False
        return all(isinstance(arg, fx.Node) for arg in node.args) and any(
            self._is(arg, nn.Conv2d) or arg in self.rounded for arg in node.args if isinstance(arg, fx.Node)
        )

    def _only_moves(self, node: fx.Node) -> bool:
        if self._is(node, nn.MaxPool2d):
            return True
        if node.op != "call_function":
            return False
        if node.target is F.interpolate:
            return bool(node.kwargs.get("mode", "nearest") == "nearest")
        return node.target in (torch.cat, torch.max_pool2d, F.max_pool2d)


def _input(node: fx.Node, index: int = 0) -> fx.Node:
    """The tensor that is operand `index` of an operation."""
    operand = node.args[index]
    assert isinstance(operand, fx.Node), f"{node} reads no tensor at {index}"
    return operand


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module)
