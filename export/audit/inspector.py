"""The layers of an engine, read from the JSON of TensorRT's inspector, as versions 10 and 11 write it.

Version 10 has one text `Format/Datatype`, version 11 has `Format` and `DataType`; both name layers after the nodes that
they were made of. A convolution with a kernel of its own has the types of its weights and input. Layers that are
compiled together (all of TensorRT-RTX) only list the nodes inside. These have the types of the typed network, which a
strongly typed build must keep.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from export.audit.layers import ConvLayer
from isodet.errors import IsodetError

_TYPES = {"int8": "int8", "half": "fp16", "fp16": "fp16", "float": "fp32", "fp32": "fp32", "bf16": "bf16", "fp8": "fp8"}
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


class InspectorError(IsodetError, ValueError):
    """Inspector JSON that cannot be read; the message says what is missing."""


def parsed(text: str) -> Mapping[str, Any]:
    """The JSON object that the inspector gave as `text`. Raises `InspectorError` for other text."""
    try:
        inspection = json.loads(text, strict=False)  # metadata may hold control characters
    except json.JSONDecodeError as error:
        raise InspectorError(f"the engine inspector gave no JSON ({error})") from None
    if not isinstance(inspection, Mapping):
        raise InspectorError("the engine inspector gave no JSON object")
    return inspection


def inspected(inspection: Mapping[str, Any], typed: Sequence[ConvLayer]) -> Iterator[ConvLayer]:
    """The convolutions of an engine. inspection: the parsed JSON. typed: the convolutions of the engine's network.

    Raises `InspectorError` for JSON without layers, and for an engine that was built without their details.
    """
    layers = inspection.get("Layers")
    if not isinstance(layers, list):
        raise InspectorError("the engine inspector gave no list of layers")
    if any(not isinstance(layer, Mapping) for layer in layers):
        raise InspectorError("the engine was built without details (profiling verbosity), so its layers have no types")
    unnamed = {layer.node: layer for layer in typed}
    for layer in layers:
        inside = [unnamed.pop(node) for node in _nodes(layer) if node in unnamed]
        if _is_convolution(layer):
            precision = _precision(layer)
            if inside:
                yield from (replace(part, precision=precision) for part in inside)
            else:
                name = str(layer.get("Name", ""))
                yield ConvLayer(name, name, _mflops(layer), precision)
        else:
            yield from (replace(part, compiled=True) for part in inside)
    # The precision of a convolution that no layer names is not proven.
    yield from (replace(part, precision="unknown") for part in unnamed.values())


def _nodes(layer: Mapping[str, Any]) -> list[str]:
    """Nodes of the graph that a layer was made of."""
    nodes = _NODE.findall(str(layer.get("Metadata", "")))
    return [*nodes, *re.split(r" \+ | \|\| ", str(layer.get("Name", "")))]


def _is_convolution(layer: Mapping[str, Any]) -> bool:
    kind = f"{layer.get('ParameterType', '')} {layer.get('LayerType', '')}".lower()
    return "convolution" in kind or "correlation" in kind


def _precision(layer: Mapping[str, Any]) -> str:
    """The precision of the multiplications: int8 if weights and input both are, else the wider type of the two."""
    weights = layer.get("Weights")
    weight = _type(str(weights.get("Type", ""))) if isinstance(weights, Mapping) else "unknown"
    inputs = layer.get("Inputs") or [{}]
    keys = ("Format/Datatype", "DataType", "Datatype", "Format")
    first = _type(" ".join(str(inputs[0].get(key, "")) for key in keys))
    if first == "unknown":  # a free batch size has no formats without a context that fixes it
        return weight
    return first if weight in ("unknown", first) else max(first, weight, key=_width)


def _type(text: str) -> str:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return next((_TYPES[word] for word in words if word in _TYPES), "unknown")


def _width(precision: str) -> int:
    return {"int8": 1, "fp8": 1, "fp16": 2, "bf16": 2, "fp32": 4}.get(precision, 0)


def _mflops(layer: Mapping[str, Any]) -> float:
    """MFLOPs of one image: every weight is used once at each position of the output."""
    outputs = layer.get("Outputs") or [{}]
    positions = math.prod(int(n) for n in outputs[0].get("Dimensions", [])[2:])
    weights = layer.get("Weights")
    return 2 * positions * int(weights.get("Count", 0)) / 1e6 if isinstance(weights, Mapping) else 0.0
