"""What a file really computes in: the share of convolution FLOPs in INT8, FP16 and FP32, layer by layer.

An ONNX file is read as a strongly typed build reads it: a convolution of dequantized integers is INT8, any other has
the type of its input. An engine is asked itself, through its inspector, where a GPU can load it; elsewhere the types of
the network that it was built from stand in its sidecar. What was asked for and is not so is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import onnx

from export.audit.inspector import inspected, parsed
from export.audit.layers import ConvLayer, network_layers
from isodet.errors import IsodetError
from models.quant.graph import PREDICTIONS
from runtime.artifact import read_card
from runtime.backends.options import BackendOptions
from runtime.backends.protocol import BackendError
from runtime.card.card import Card, CardError, file_kind

PRECISIONS = ("int8", "fp16", "fp32")
_READABLE = {"network": "the typed network", "inspector": "the engine's inspector"}


class AuditError(IsodetError, RuntimeError):
    """A file that does not compute in what was asked for; `audit` has every layer."""

    def __init__(self, message: str, audit: Audit, path: str | Path | None = None):
        super().__init__(message, path=path)
        self.audit = audit


@dataclass(frozen=True)
class Audit:
    """The convolutions of a file, and what they were meant to be."""

    asked: str
    """fp32, fp16 or int8."""
    source: str
    """network or inspector."""
    layers: tuple[ConvLayer, ...]
    float_layers: tuple[str, ...] = ()
    """Those that an int8 network leaves in float on purpose: the predictions, and what the card names."""
    compiled: float = 0.0
    """Share of FLOPs inside kernels that an engine compiled as one and does not look into: there the types of the
    network hold, which the library is bound to."""
    why: str = ""
    """Why an engine was not asked itself; "" where it was, and for a graph."""

    def share(self, precision: str) -> float:
        """Part of the convolution FLOPs in that precision, 0 to 1."""
        total = sum(layer.mflops for layer in self.layers)
        return sum(layer.mflops for layer in self.layers if layer.precision == precision) / total if total else 0.0

    def missed(self, allow: Sequence[str] = ()) -> tuple[str, ...]:
        """Names of layers that are not what was asked for. allow: patterns of names that may differ (`neck.*`)."""
        wrong = []
        for layer in self.layers:
            meant = self.asked == "int8" and layer.name in self.float_layers
            if layer.precision != self.asked and not meant and not any(fnmatchcase(layer.name, p) for p in allow):
                wrong.append(layer.name)
        return tuple(dict.fromkeys(wrong))

    def require(self, what: str, allow: Sequence[str] = ()) -> None:
        """Raise `AuditError` where something asked for is not so. what: the file, for the message."""
        if not self.layers:
            raise AuditError(f"{what}: no convolution was found to audit", self, what)
        missed = self.missed(allow)
        if missed:
            shown = ", ".join(missed[:5]) + (f" and {len(missed) - 5} more" if len(missed) > 5 else "")
            raise AuditError(
                f"{what}: {self.asked} was asked for, but {len(missed)} layers are not ({self.shares()}): {shown}; "
                "allow them by name or pattern with --allow where that is meant",
                self,
                what,
            )

    def shares(self) -> str:
        """The shares in one line: `INT8 97.1 %, FP16 2.9 %`."""
        found = dict.fromkeys((*PRECISIONS, *(layer.precision for layer in self.layers)))
        return ", ".join(f"{p.upper()} {self.share(p):.1%}".replace("%", " %") for p in found if self.share(p))

    def table(self, allow: Sequence[str] = ()) -> str:
        """The shares, where they were read, and the layers that are something else than what most are."""
        missed = self.missed(allow)
        where = _READABLE[self.source]
        if self.compiled:
            where += f" ({self.compiled:.0%} in compiled kernels, by the typed network)"
        lines = [f"convolution FLOPs: {self.shares()}, by {where}; asked for: {self.asked.upper()}"]
        by_name: dict[str, float] = {}
        for layer in self.layers:
            by_name[layer.name] = by_name.get(layer.name, 0.0) + layer.mflops
        total = sum(by_name.values())
        different = {layer.name: layer.precision for layer in self.layers if layer.precision != self.asked}
        for name, precision in different.items():
            why = "NOT WHAT WAS ASKED FOR" if name in missed else "meant to be"
            if name not in missed and name not in self.float_layers:
                why = "allowed"
            lines.append(f"  {name:<40} {precision.upper():<5} {by_name[name] / total:6.1%} of the FLOPs  {why}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """For a sidecar; `Audit.from_json` of it gives an equal audit."""
        return {
            "asked": self.asked, "source": self.source, "compiled": self.compiled,
            "share": {p: round(self.share(p), 6) for p in PRECISIONS}, "float_layers": list(self.float_layers),
            "layers": [[layer.name, layer.node, layer.mflops, layer.precision] for layer in self.layers],
        }  # fmt: skip

    @classmethod
    def from_json(cls, content: Mapping[str, Any], source: str | Path) -> Audit:
        """Raises `CardError` naming the file `source` for something else."""
        try:
            layers = tuple(ConvLayer(str(n), str(o), float(f), str(p)) for n, o, f, p in content["layers"])
            floats = tuple(str(name) for name in content["float_layers"])
            return cls(str(content["asked"]), str(content["source"]), layers, floats, float(content["compiled"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CardError.at(source, f"cannot be read ({error!r})", key="engine.audit") from None


def audit_file(path: str | Path, device: str = "auto", check_hashes: bool = True) -> Audit:
    """The audit of an ONNX file or an engine of ours.

    An engine is loaded on `device` and asked; where it cannot run here, the audit of its network is read from its
    sidecar. check_hashes: as in `read_card`. Raises `CardError` for another file.
    """
    path = Path(path)
    kind = file_kind(path)
    if kind == "checkpoint":
        raise CardError.at(path, "a checkpoint has no precision yet; audit the .onnx or .engine made from it")
    card = read_card(path, check_hashes)
    if kind == "onnx":
        return audit_network(load_graph(path), card)
    typed = Audit.from_json(card.engine["audit"], path)
    if device == "cpu":
        return replace(typed, why="an engine does not run on a CPU")
    try:
        from runtime.backends.trt.backend import TrtBackend

        backend = TrtBackend(path, device, BackendOptions(check_hashes=False))  # compared when its card was read
    except BackendError as error:
        if device != "auto":
            raise
        return replace(typed, why=str(error))
    return audit_engine(backend.layers(), typed)


def audit_network(model: onnx.ModelProto, card: Card) -> Audit:
    """The audit of a graph whose card says what it was meant to be."""
    return Audit(card.precision, "network", tuple(network_layers(model)), float_layers(card))


def audit_engine(layers: str, typed: Audit) -> Audit:
    """The audit of an engine. layers: the JSON of its inspector. typed: the audit of its network.

    Raises `InspectorError` for a JSON that says nothing about layers.
    """
    found = tuple(inspected(parsed(layers), typed.layers))
    compiled = sum(layer.mflops for layer in found if layer.compiled)
    total = sum(layer.mflops for layer in found)
    return replace(typed, source="inspector", layers=found, compiled=compiled / total if total else 0.0)


def load_graph(path: Path) -> onnx.ModelProto:
    """The graph in an ONNX file. Raises `CardError` for a broken one."""
    try:
        return onnx.load(path)
    except Exception as error:  # those of protobuf, of onnx and of the system have no common base
        raise CardError.at(path, f"cannot be read as ONNX: {' '.join(str(error).split())}") from None


def float_layers(card: Card) -> tuple[str, ...]:
    """Names of the layers that an int8 network leaves in float on purpose."""
    named: Iterable[str] = card.quantization.get("float_layers", ())
    return (*PREDICTIONS, *named)
