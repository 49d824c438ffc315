"""The quantized detector: `FakeQuant`s in its folded graph, where an 8-bit engine computes with integers.

The rules of placement:
- Every convolution but the last predictions has an int8 input and an int8 weight.
- A tensor has one `FakeQuant`, which all of its 8-bit readers share.
- Operations that only move or select numbers (max pooling, nearest upsampling, concatenation) work on integers: the
  `FakeQuant` is in front of them.
- The parts of a concatenation share one range, and so do concatenations that have a part in common.
- The second operand of a sum is rounded. The first is the float output of a convolution, because engines do the
  addition inside the kernel of that convolution.
- The affine of a pyramid level (`models.layers.blocks.LevelAffine`) is multiplied into the scale of the convolution's
  weight, so that nothing is between an int8 convolution and its ReLU.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from isodet.errors import IsodetError
from models.detector import Detector, Raw
from models.layers.fuse import fuse, require_eval
from models.quant.convolution import QuantConv2d
from models.quant.fake_quant import FakeQuant
from models.quant.folding import fold_convolutions, merge
from models.quant.observe import Ranges, observe
from models.quant.placement import Inserter, absorb_level_affines, groups, replace, roundings_of, tensors
from models.quant.ranges import Method

PREDICTIONS = ("head.cls", "head.box", "head.quality")


class QuantError(IsodetError, ValueError):
    """A network that cannot be quantized; the message says which part and what to do."""


class QuantDetector(Detector):
    """A folded detector with `FakeQuant`s: pixels to `Raw` like any `Detector`, but 8-bit inside."""

    def __init__(self, detector: Detector, float_layers: Sequence[str] = ()):
        """Takes the modules of a folded detector. float_layers: names of convolutions that are not quantized."""
        nn.Module.__init__(self)
        self.config, self.pixels, self._priors = detector.config, detector.pixels, {}
        self.float_layers = tuple(float_layers)
        self.graph = _with_fake_quants(detector, self.float_layers)
        self._groups = groups(self.graph)

    def share(self, groups: list[list[str]]) -> None:
        """Give one common range to each list of names of `fake_quants`."""
        self._groups = groups

    def network(self, x: Tensor) -> Raw:
        logits, boxes, quality = self.graph(x)
        if self.training:
            self._share_ranges()
        return Raw(logits.float(), boxes.float(), None if quality is None else quality.float())

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor], method: Method = "mse", percentile: float = 99.99) -> int:
        """Set the ranges from batches of images uint8 [B, H, W, 3]; returns the number of images.

        percentile: for the method of that name, the share of magnitudes inside the range. Raises `QuantError` where
        there is no image.
        """
        ranges, images = self.observe(batches, percentile)
        self.set_ranges(ranges, method)
        return images

    @torch.no_grad()
    def observe(self, batches: Iterable[Tensor], percentile: float = 99.99) -> tuple[dict[str, Ranges], int]:
        """The ranges of all rounded tensors on batches of images uint8 [B, H, W, 3], and the number of images.

        Ranges are given by every method, under the names of `tensors`. The detector is not changed. Raises `QuantError`
        where there is no image.
        """
        training = self.training
        self.eval()
        try:
            ranges, images = observe(self.graph, self._rounded, (self.pixels(batch) for batch in batches), percentile)
        finally:
            self.train(training)
        if images == 0:
            raise QuantError.of("calibration", "expected images to observe, got none")
        return ranges, images

    def set_ranges(self, ranges: Mapping[str, Ranges], method: Method) -> None:
        """Set the ranges that `observe` found by `method`. Raises `QuantError` where `ranges` lacks a tensor."""
        if missing := self.unknown(ranges):
            raise QuantError.of("ranges", f"nothing is said of the tensor {missing[0]} (and {len(missing) - 1} others)")
        names, fake_quants = tensors(self.graph), self.fake_quants
        for group in self._groups:
            parts = [ranges[name] for member in group for name in names[member]]
            low, high = min(part.low for part in parts), max(part.high for part in parts)
            magnitude = max(part.magnitudes[method] for part in parts)
            for member in group:
                fake_quants[member].set_range(low, high, magnitude)

    def unknown(self, ranges: Mapping[str, Ranges]) -> list[str]:
        """The rounded tensors that `ranges` lacks."""
        return sorted(self._rounded - set(ranges))

    @property
    def _rounded(self) -> set[str]:
        return {name for names in tensors(self.graph).values() for name in names}

    def enable(self, layers: Collection[str] | None = None) -> None:
        """Quantize these convolutions and their inputs only; None: everything."""
        inputs = {name for layer in layers or () for name in roundings_of(self.graph, layer)}
        for name, conv in self.layers.items():
            conv.enabled = layers is None or name in layers
        for name, fake_quant in self.fake_quants.items():
            fake_quant.enabled = layers is None or name in inputs

    @torch.no_grad()
    def _share_ranges(self) -> None:
        """Give each group the widest of its ranges, while they track the batches of a training."""
        fake_quants = self.fake_quants
        for group in self._groups:
            members = [fake_quants[name] for name in group]
            if len(members) > 1 and all(member.tracking for member in members):
                widest = torch.stack([member.scale for member in members]).amax()
                for member in members:
                    member.scale.copy_(widest)

    def fuse(self) -> QuantDetector:
        """This detector with int8 weights, and a single rounding where several round a tensor in the same way."""
        require_eval(self)
        merge(self.graph)
        fold_convolutions(self.graph)
        self.graph.graph.lint()
        self.graph.recompile()
        return self

    @property
    def layers(self) -> dict[str, QuantConv2d]:
        """The quantized convolutions by name, in the order of their first call."""
        modules = dict(self.graph.named_modules())
        called = dict.fromkeys(str(node.target) for node in self.graph.graph.nodes)
        return {name: module for name in called if isinstance(module := modules.get(name), QuantConv2d)}

    @property
    def fake_quants(self) -> dict[str, FakeQuant]:
        """The `FakeQuant`s, each by the name of the first operation that reads its output."""
        children = self.graph.get_submodule("fake_quants").named_children()
        return {name: module for name, module in children if isinstance(module, FakeQuant)}


def quantize(detector: Detector, float_layers: Sequence[str] = ()) -> QuantDetector:
    """A folded copy of `detector`, in eval mode, with `FakeQuant`s whose ranges are not set yet.

    float_layers: names of convolutions that stay in float, besides the predictions. Raises `QuantError` for a network
    that cannot be traced or an unknown name, `FuseError` in train mode.
    """
    require_eval(detector)
    return QuantDetector(fuse(detector), float_layers).eval()


class _Body(nn.Module):
    """The part that is traced: normalized images [B, 3, H, W] to raw outputs."""

    def __init__(self, detector: Detector):
        super().__init__()
        self.backbone, self.neck, self.head = detector.backbone, detector.neck, detector.head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.head(self.neck(self.backbone(x)))


def _with_fake_quants(detector: Detector, float_layers: tuple[str, ...]) -> fx.GraphModule:
    try:
        graph = fx.symbolic_trace(_Body(detector))
    except Exception as error:  # tracing runs the network's code on proxies, which may fail in any way
        raise QuantError(
            f"{detector.config.backbone.name}: cannot be traced for quantization, because a decision in its forward "
            f"depends on values ({error}); use fp16, or a backbone with a fixed sequence of operations"
        ) from error
    convolutions = {name: module for name, module in graph.named_modules() if isinstance(module, nn.Conv2d)}
    if unknown := [name for name in float_layers if name not in convolutions]:
        raise QuantError(
            f"{unknown[0]} is no convolution of this network; the first are {', '.join(sorted(convolutions)[:4])}"
        )
    for name, conv in convolutions.items():
        if name not in PREDICTIONS and name not in float_layers:
            replace(graph, name, QuantConv2d(conv))
    graph.add_submodule("fake_quants", nn.Module())
    absorb_level_affines(graph)
    Inserter(graph).run()
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
    return graph
