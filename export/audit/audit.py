"""The audit of a file: the share of convolution FLOPs in INT8, FP16 and FP32, layer by layer.

An ONNX file is read as a strongly typed build reads it: a convolution of dequantized integers is INT8, any other has
the type of its input. For an engine, its inspector is asked where a GPU can load it; elsewhere the sidecar has the
types of the network that it was built from. Layers whose precision is not the one that was asked for are named.
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
from runtime.backends.options import BackendOptions, OpenVinoPrecision
from runtime.backends.protocol import BackendError
from runtime.card.card import Card, CardError, file_kind

PRECISIONS = ("int8", "fp16", "fp32")
_READABLE = {
    "network": "the typed network", "inspector": "the engine's inspector", "openvino": "OpenVINO's execution graph"
}  # fmt: skip
_OPENVINO_TYPES = {"f32": "fp32", "f16": "fp16", "u8": "int8", "i8": "int8"}


class AuditError(IsodetError, RuntimeError):
    """A file that does not compute in the precision that was asked for; `audit` has every layer."""

    def __init__(self, message: str, audit: Audit, path: str | Path | None = None):
        super().__init__(message, path=path)
        self.audit = audit


@dataclass(frozen=True)
class Audit:
    """The convolutions of a file, and the precision that was asked for.

    asked: fp32, fp16, bf16 or int8. source: network, inspector or openvino. float_layers: layers that an int8 network
    leaves in float on purpose: the predictions, and those in the card. compiled: share of FLOPs in kernels that the
    inspector cannot look into; they have the types of the network, which the library must keep. why: the reason why an
    engine's inspector was not asked; "" where it was, and for a graph.
    """

    asked: str
    source: str
    layers: tuple[ConvLayer, ...]
    float_layers: tuple[str, ...] = ()
    compiled: float = 0.0
    why: str = ""

    def share(self, precision: str) -> float:
        """Share of the convolution FLOPs in that precision, 0 to 1."""
        total = sum(layer.mflops for layer in self.layers)
        return sum(layer.mflops for layer in self.layers if layer.precision == precision) / total if total else 0.0

    def missed(self, allow: Sequence[str] = ()) -> tuple[str, ...]:
        """Names of layers that are not in the precision asked for. allow: patterns of names that may be (`neck.*`)."""
        intended = self.float_layers if self.asked == "int8" else ()
        wrong = dict.fromkeys(layer.name for layer in self.layers if layer.precision != self.asked)
        return tuple(name for name in wrong if name not in intended and not any(fnmatchcase(name, p) for p in allow))

    def require(self, file: str, allow: Sequence[str] = ()) -> None:
        """Raise `AuditError` if a layer is not in the precision asked for. file: its name, for the message."""
        if not self.layers:
            raise AuditError(f"{file}: no convolution was found to audit", self, file)
        missed = self.missed(allow)
        if missed:
            shown = ", ".join(missed[:5]) + (f" and {len(missed) - 5} more" if len(missed) > 5 else "")
            message = (
                f"{file}: {self.asked} was asked for, but {len(missed)} layers are not ({self.shares()}): {shown}; "
                "allow them by name or pattern with --allow where that is meant"
            )
            raise AuditError(message, self, file)

    def shares(self) -> str:
        """The shares in one line: `INT8 97.1 %, FP16 2.9 %`."""
        precisions = dict.fromkeys((*PRECISIONS, *(layer.precision for layer in self.layers)))
        return ", ".join(f"{p.upper()} {self.share(p):.1%}".replace("%", " %") for p in precisions if self.share(p))

    def table(self, allow: Sequence[str] = ()) -> str:
        """The shares, their source, and the layers whose precision is not the one asked for."""
        missed = self.missed(allow)
        source = _READABLE[self.source]
        if self.compiled:
            source += f" ({self.compiled:.0%} in compiled kernels, by the typed network)"
        lines = [f"convolution FLOPs: {self.shares()}, by {source}; asked for: {self.asked.upper()}"]
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
        """The audit for a sidecar; `Audit.from_json` reads it back."""
        return {
            "asked": self.asked,
            "source": self.source,
            "compiled": self.compiled,
            "share": {p: round(self.share(p), 6) for p in PRECISIONS},
            "float_layers": list(self.float_layers),
            "layers": [[layer.name, layer.node, layer.mflops, layer.precision] for layer in self.layers],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], source: str | Path) -> Audit:
        """The audit in the sidecar `source`. Raises `CardError` naming that file for other content."""
        try:
            layers = tuple(ConvLayer(str(n), str(o), float(f), str(p)) for n, o, f, p in content["layers"])
            floats = tuple(str(name) for name in content["float_layers"])
            return cls(str(content["asked"]), str(content["source"]), layers, floats, float(content["compiled"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CardError.at(source, f"cannot be read ({error!r})", key="engine.audit") from None


def audit_file(path: str | Path, device: str = "auto", check_hashes: bool = True) -> Audit:
    """The audit of an ONNX file or an engine of ours.

    An engine is loaded on `device` and its inspector asked; if it cannot run here, the audit of its network is read
    from its sidecar. check_hashes: as in `read_card`. Raises `CardError` for another file.
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

        backend = TrtBackend(path, device, BackendOptions(check_hashes=False))  # `read_card` has done it
    except BackendError as error:
        if device != "auto":
            raise
        return replace(typed, why=str(error))
    return audit_engine(backend.layers(), typed)


def audit_openvino(path: str | Path, device: str = "auto", precision: OpenVinoPrecision = "float32") -> Audit:
    """The audit of an ONNX file as OpenVINO runs it on `device`: of an int8 file what is asked for is int8, of another
    one it is `precision`. Raises `CardError` for another file, and `BackendError` where it does not run here."""
    from runtime.backends.openvino.backend import OpenVinoBackend

    path = Path(path)
    if file_kind(path) != "onnx":
        raise CardError.at(path, "OpenVINO runs .onnx files; audit this one without --engine")
    backend = OpenVinoBackend(path, device, None, BackendOptions(engine="openvino", precision=precision))
    card = backend.card
    types = [(frozenset(names), _OPENVINO_TYPES.get(kind, kind)) for names, kind in backend.convolutions()]
    layers = tuple(network_layers(load_graph(path)))
    # A convolution that took in the scale behind it has another name. Where all of these are of one type, it is known.
    renamed = {kind for names, kind in types if names.isdisjoint(layer.node for layer in layers)}
    unnamed = renamed.pop() if len(renamed) == 1 else "unknown"
    built = {name: kind for names, kind in types for name in names}
    layers = tuple(replace(layer, precision=built.get(layer.node, unnamed)) for layer in layers)
    asked = card.precision if card.precision == "int8" else {"float32": "fp32"}.get(precision, precision)
    return Audit(asked, "openvino", layers, float_layers(card))


def audit_network(model: onnx.ModelProto, card: Card) -> Audit:
    """The audit of a graph; its `card` says which precision was asked for."""
    return Audit(card.precision, "network", tuple(network_layers(model)), float_layers(card))


def audit_engine(layers: str, typed: Audit) -> Audit:
    """The audit of an engine. layers: the JSON of its inspector. typed: the audit of its network.

    Raises `InspectorError` for JSON without layers.
    """
    convolutions = tuple(inspected(parsed(layers), typed.layers))
    compiled = sum(layer.mflops for layer in convolutions if layer.compiled)
    total = sum(layer.mflops for layer in convolutions)
    return replace(typed, source="inspector", layers=convolutions, compiled=compiled / total if total else 0.0)


def load_graph(path: Path) -> onnx.ModelProto:
    """The graph in an ONNX file. Raises `CardError` for a broken one."""
    try:
        return onnx.load(path)
    except Exception as error:  # errors of protobuf, onnx and the system have no common base
        raise CardError.at(path, f"cannot be read as ONNX: {' '.join(str(error).split())}") from None


def float_layers(card: Card) -> tuple[str, ...]:
    """Names of the layers that an int8 network leaves in float on purpose."""
    named: Iterable[str] = card.quantization.get("float_layers", ())
    return (*PREDICTIONS, *named)
