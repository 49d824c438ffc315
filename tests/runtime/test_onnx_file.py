"""The hash of a graph: what is computed, whatever is said of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from runtime import Card
from runtime.card.card import METADATA_KEY, CardError
from runtime.card.onnx_metadata import graph_sha256
from tests.at_fault import raises


def test_the_hash_is_of_the_graph_and_not_of_its_card(onnx_file: Callable[..., Path], card: Card) -> None:
    path = onnx_file()
    before = graph_sha256(path)
    model = onnx.load(path)
    (entry,) = [p for p in model.metadata_props if p.key == METADATA_KEY]
    entry.value = json.dumps(replace(card, threshold=0.77).to_json())
    onnx.save(model, path)
    assert graph_sha256(path) == before
    model.metadata_props.add(key="another", value="note")
    onnx.save(model, path)
    assert graph_sha256(path) != before


def test_every_bit_of_a_weight_counts(onnx_file: Callable[..., Path]) -> None:
    path = onnx_file()
    before, model = graph_sha256(path), onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[-1] = np.nextafter(values.flat[-1], np.float32(np.inf))
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)
    assert graph_sha256(path) != before


def test_a_file_that_is_not_whole_has_no_hash(onnx_file: Callable[..., Path], tmp_path: Path) -> None:
    whole = onnx_file().read_bytes()
    for content in (b"", b"\x08" + b"\xff" * 40, whole[: len(whole) // 2]):
        (tmp_path / "cut.onnx").write_bytes(content)
        with raises(CardError, path=tmp_path / "cut.onnx"):
            graph_sha256(tmp_path / "cut.onnx")
