"""Where an 8-bit engine has integers: `FakeQuant`s put into a detector's folded graph.

Every convolution but the last predictions reads int8 and has an int8 weight. A tensor has one `FakeQuant`, which all of
its 8-bit readers share. What only moves or chooses numbers (pooling by maximum, enlarging, concatenation) happens on
integers: the `FakeQuant` stands before it. Parts of a concatenation have one range, and so have concatenations with a
part in common. A sum's second operand is rounded, its first stays the unrounded result of a convolution, which engines
add inside that convolution's kernel. The affine of a pyramid level (`models.layers.blocks.LevelAffine`) goes into the
scale of its convolution's weight, so that nothing stands between an int8 convolution and its ReLU.
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
    """A network that cannot be quantized; the message says where and what to do."""


class QuantDetector(Detector):
    """A folded detector with `FakeQuant`s: the same `Raw` from the same pixels, 8-bit inside."""

    def __init__(self, detector: Detector, float_layers: Sequence[str] = ()):
        """Takes a folded detector over. `float_layers`: convolutions that stay as they are (see `layers`)."""
        nn.Module.__init__(self)
        self.config, self.pixels, self._priors = detector.config, detector.pixels, {}
        self.float_layers = tuple(float_layers)
        self.graph = _with_fake_quants(detector, self.float_layers)
        self._groups = groups(self.graph)

    def share(self, groups: list[list[str]]) -> None:
        """Let these `fake_quants` have one range for each list of names."""
        self._groups = groups

    def network(self, x: Tensor) -> Raw:
        logits, boxes, quality = self.graph(x)
        if self.training:
            self._share_ranges()
        return Raw(logits.float(), boxes.float(), None if quality is None else quality.float())

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor], method: Method = "mse", percentile: float = 99.99) -> int:
        """Set the ranges from what is seen on batches of images uint8 [B, H, W, 3]; returns how many images those were.

        percentile: of magnitudes inside the range, for that method. Raises `QuantError` where there is no image.
        """
        ranges, images = self.observe(batches, percentile)
        self.set_ranges(ranges, method)
        return images

    @torch.no_grad()
    def observe(self, batches: Iterable[Tensor], percentile: float = 99.99) -> tuple[dict[str, Ranges], int]:
        """What the rounded tensors were like on batches of images uint8 [B, H, W, 3], by every method, under the names
        of `tensors`; and how many images those were. Nothing is changed. Raises `QuantError` where there is no image.
        """
        training = self.training
        self.eval()
        wanted = {name for names in tensors(self.graph).values() for name in names}
        try:
            found, images = observe(self.graph, wanted, (self.pixels(batch) for batch in batches), percentile)
        finally:
            self.train(training)
        if images == 0:
            raise QuantError.of("calibration", "expected images to observe, got none")
        return found, images

    def set_ranges(self, ranges: Mapping[str, Ranges], method: Method) -> None:
        """Round as `observe` found it, by `method`. Raises `QuantError` where `ranges` leaves a tensor out."""
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
        """The rounded tensors that `ranges` leaves out."""
        return sorted({name for read in tensors(self.graph).values() for name in read} - set(ranges))

    def enable(self, layers: Collection[str] | None = None) -> None:
        """Round these convolutions alone, with what they read; None: everything again."""
        read = {name for layer in layers or () for name in roundings_of(self.graph, layer)}
        for name, conv in self.layers.items():
            conv.enabled = layers is None or name in layers
        for name, fake_quant in self.fake_quants.items():
            fake_quant.enabled = layers is None or name in read

    @torch.no_grad()
    def _share_ranges(self) -> None:
        """One range for each group, while ranges follow the batches of a training."""
        fake_quants = self.fake_quants
        for group in self._groups:
            members = [fake_quants[name] for name in group]
            if len(members) > 1 and all(member.tracking for member in members):
                widest = torch.stack([member.scale for member in members]).amax()
                for member in members:
                    member.scale.copy_(widest)

    def fuse(self) -> QuantDetector:
        """The same with int8 weights, and with one rounding where several round a tensor alike."""
        require_eval(self)
        merge(self.graph)
        fold_convolutions(self.graph)
        self.graph.graph.lint()
        self.graph.recompile()
        return self

    @property
    def layers(self) -> dict[str, QuantConv2d]:
        """The convolutions that are quantized, by name in the order of their first use."""
        modules = dict(self.graph.named_modules())
        used = [str(node.target) for node in self.graph.graph.nodes if node.op == "call_module"]
        return {name: modules[name] for name in dict.fromkeys(used) if isinstance(modules[name], QuantConv2d)}

    @property
    def fake_quants(self) -> dict[str, FakeQuant]:
        """By the name of the operation that reads it first."""
        found = self.graph.get_submodule("fake_quants").named_children()
        return {name: module for name, module in found if isinstance(module, FakeQuant)}


def quantize(detector: Detector, float_layers: Sequence[str] = ()) -> QuantDetector:
    """A folded copy of `detector`, in eval mode, with `FakeQuant`s whose ranges are not known yet.

    float_layers: names of convolutions that stay in float besides the predictions. Raises `QuantError` for a network
    that cannot be traced or an unknown name, `FuseError` in train mode.
    """
    require_eval(detector)
    return QuantDetector(fuse(detector), float_layers).eval()


class _Body(nn.Module):
    """What is traced: normalized images [B, 3, H, W] to raw outputs."""

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
            f"{detector.config.backbone.name}: cannot be traced for quantization, because a decision in its forward "
            f"depends on values ({error}); use fp16, or a backbone with a fixed sequence of operations"
        ) from error
    convolutions = {name: module for name, module in graph.named_modules() if isinstance(module, nn.Conv2d)}
    if unknown := [name for name in float_layers if name not in convolutions]:
        raise QuantError(f"{unknown[0]} is no convolution of this network; the first are "
                         f"{', '.join(sorted(convolutions)[:4])}")  # fmt: skip
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
