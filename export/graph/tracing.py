"""From a module to an ONNX model, and the checks of every model: size, weights, form."""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.options import ExportError
from runtime.card.card import METADATA_KEY, Card, card_text
from runtime.card.onnx_metadata import graph_sha256


def trace(
    module: nn.Module, example: tuple[Tensor, ...], opset: int, fixed: bool, inputs: list[str], outputs: list[str]
) -> onnx.ModelProto:
    """`module` as an ONNX model. Unless `fixed`, the first dimension of each input is free; `example` has 2 there."""
    dynamic = None if fixed else tuple({0: "batch"} for _ in example)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
        program = torch.onnx.export(
            module, example, dynamo=True, opset_version=opset, input_names=inputs, output_names=outputs,
            dynamic_shapes=dynamic, optimize=True, verbose=False,
        )  # fmt: skip
    assert program is not None
    return program.model_proto


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` without redundant nodes; it must not have functions yet. Raises `ExportError` if the file would grow."""
    import onnxslim

    with contextlib.redirect_stdout(io.StringIO()):
        # Factors behind convolutions are not folded: every pyramid level would get a copy of the convolution that all
        # levels share (models.layers.blocks.LevelNorm). Engines fold them while they load the file.
        slim = onnxslim.slim(model, skip_fusion_patterns=["FusionConvMul"])
    if not isinstance(slim, onnx.ModelProto):
        raise ExportError("onnxslim gave no model back; export without --simplify")
    before, after = model.ByteSize(), slim.ByteSize()
    if after > before * 1.02:
        raise ExportError(
            f"onnxslim grew the model from {before} to {after} bytes (duplicated weights); export without it"
        )
    return slim


def check_weights(model: onnx.ModelProto) -> None:
    """Raise `ExportError` for weights that are not finite, or that are in the file twice.

    Duplicates are searched among tensors of at least 4 KB and two dimensions whose numbers are not all equal.
    """
    seen: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        require_finite(tensor.name, values)
        if values.nbytes < 4096 or values.ndim < 2 or (values == values.flat[0]).all():
            continue
        key = (tensor.data_type, tuple(tensor.dims), values.tobytes())
        if key in seen:
            raise ExportError(
                f"the graph holds the weights {seen[key]} twice, again as {tensor.name}; nothing was written"
            )
        seen[key] = tensor.name


def require_finite(name: str, values: NDArray[Any]) -> None:
    """Raise `ExportError` for a weight with NaN or infinite numbers, which engines accept silently."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ExportError(f"the weight {name} of the graph holds NaN or infinite numbers; nothing was written")


def weights_megabytes(model: onnx.ModelProto) -> float:
    """Size of all initializers."""
    types = onnx.helper.tensor_dtype_to_np_dtype
    return sum(np.prod(t.dims) * types(t.data_type).itemsize for t in model.graph.initializer) / 2**20


def write_model(model: onnx.ModelProto, card: Card, path: Path) -> Card:
    """Check `model` and write it with the card inside; returns the card with the hash of the graph."""
    others = [p for p in model.metadata_props if p.key != METADATA_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(others)
    model.producer_name, model.producer_version = "isodet", version("isodet")
    onnx.save(model, path)
    card = replace(card, hashes={**card.hashes, "graph": graph_sha256(path)})
    model.metadata_props.add(key=METADATA_KEY, value=card_text(card))
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker raises several kinds, none of them documented
        raise ExportError(f"onnx.checker refuses the exported graph: {error}") from error
    onnx.save(model, path)
    return card
