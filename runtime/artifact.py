"""The card of a model file of any kind."""

from __future__ import annotations

from pathlib import Path

from runtime.card.card import Card, file_kind
from runtime.card.onnx_metadata import read_onnx_card
from runtime.card.sidecar import read_sidecar


def read_card(path: str | Path, check_hashes: bool = True) -> Card:
    """The card of an ONNX file, an engine or a checkpoint (which loads torch), told apart by content.

    check_hashes: refuse a damaged card, engine or checkpoint. The graph of an ONNX file is not checked here, but by
    `runtime.card.onnx_metadata.require_unedited`. Raises `CardError` for a file that is missing, is none of the three,
    or has no card of isodet.
    """
    kind = file_kind(path)
    if kind == "engine":
        return read_sidecar(path, check_hashes)
    if kind == "checkpoint":
        from runtime.backends.torch.backend import read_checkpoint_card  # torch is only needed for a checkpoint

        return read_checkpoint_card(path, check_hashes)
    return read_onnx_card(path, check_hashes)
