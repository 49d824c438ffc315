from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from runtime.artifact import read_card
from runtime.card.card import METADATA_KEY, Card, CardError, sha256_file
from runtime.card.onnx_metadata import graph_sha256, read_onnx_metadata
from tests.at_fault import raises


def test_a_card_survives_json(make_card_with: Callable[..., Card]) -> None:
    card = make_card_with(
        batch=4, versions={"torch": "2.15"}, hashes={"weights": "ab"}, model={"neck": {"levels": [3, 7]}},
        metrics={"map": 41.5}, created="2026-11-20T10:00:00Z", verification={"passed": True}, threshold=1,
    )  # fmt: skip
    for form in (card.to_json(), json.dumps(card.to_json())):
        assert Card.from_json(form, "x.onnx") == card
    assert card.to_json()["format"] == 1 and card.to_json()["classes"] == ["ant", "bee", "cat"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2 is newer than the 1 that this isodet reads; upgrade"),
        ({"format": "1"}, "format: expected a whole number"),
        ({"format": True}, "format: expected a whole number"),
        ({"kind": "cake"}, "kind: expected one of checkpoint, onnx, engine, got 'cake'"),
        ({"classes": []}, "classes: expected a list of at least one"),
        ({"classes": "ant"}, "classes: expected a list"),
        ({"classes": ["a", "a"]}, "classes: expected class names that differ"),
        ({"classes": ["a", 3]}, r"classes\[1\]: expected text"),
        ({"input_size_hw": [32]}, "input_size_hw: expected"),
        ({"input_size_hw": [32, 0]}, "input_size_hw: expected"),
        ({"input_size_hw": [32.0, 32.0]}, r"input_size_hw\[0\]: expected"),
        ({"batch": 0}, "batch: expected dynamic"),
        ({"batch": "any"}, "batch: expected a whole number or dynamic, got 'any'"),
        ({"input": "float-nchw"}, "color: expected rgb, the order of float-nchw"),
        ({"color": "rgb"}, "color: expected bgr"),
        ({"letterbox": {"align": "center", "fill": 114, "interpolation": "linear"}}, "letterbox: expected"),
        ({"letterbox": "top-left"}, "letterbox: expected a mapping"),
        ({"input": "yuv"}, "input: expected one of uint8-nhwc, float-nchw"),
        ({"source_size_hw": [1080]}, "source_size_hw: expected"),
        ({"nms": {"kind": "soft", "iou": 0.6, "candidates": 10, "detections": 1}}, "nms.kind: expected one of auto"),
        (
            {"nms": {"kind": "auto", "iou": 0.6, "candidates": 10, "detections": 1, "sigma": 0.5}},
            "unknown key 'nms.sigma'.*; a newer isodet may read it",
        ),
        (
            {"nms": {"kind": "portable", "iou": 0.6, "candidates": 10, "detections": 1, "certificate": "yes"}},
            "nms.certificate: expected true or false",
        ),
        ({"precision": "fp8"}, "precision: expected"),
        ({"threshold": 1.5}, "threshold: expected a score"),
        ({"score_threshold": "low"}, "score_threshold: expected a number, got 'low'"),
        ({"nms": {"kind": "portable", "iou": 0.6, "candidates": 10}}, "missing key 'nms.detections'"),
        (
            {"nms": {"kind": "portable", "iou": 0.6, "candidates": 10, "detections": 0}},
            "nms.detections: expected a whole",
        ),
        ({"nms": {"kind": "portable", "iou": "x", "candidates": 10, "detections": 1}}, "nms.iou: expected a number"),
        ({"versions": {"torch": 2}}, "versions.torch: expected text, got 2"),
        ({"model": []}, "model: expected a mapping"),
        ({"created": 5}, "created: expected"),
        ({"colour": "bgr"}, "unknown key 'colour'; did you mean 'color'"),
    ],
)
def test_bad_cards_name_the_source_and_the_key(card: Card, change: dict[str, Any], message: str) -> None:
    with pytest.raises(CardError, match=message) as error:
        Card.from_json({**card.to_json(), **change}, "some/file.onnx")
    assert str(error.value).startswith("some/file.onnx: card: ")
    assert error.value.path == Path("some/file.onnx")
    named = re.split(r"[.\[]", error.value.key or "")[0]
    assert named in str(error.value) and named == (
        "color" if "input" in change and "color:" in message else [*change][0]
    )


def test_raw_frames_of_another_size_than_the_graph_takes_become_that_size_first(card: Card) -> None:
    assert "source_size_hw" not in card.to_json()  # so that older runtimes read cards that do not need it
    raw = Card.from_json({**card.to_json(), "source_size_hw": [480, 640]}, "x")
    assert Card.from_json(raw.to_json(), "x") == raw and raw.frame_hw == (480, 640)
    assert raw.resize_rule().fit((480, 640)).resized_hw == (480, 640)  # as it is
    assert raw.resize_rule().fit((960, 640)).resized_hw == (480, 320)
    assert card.frame_hw == card.input_size_hw


def test_missing_and_foreign_cards(card: Card) -> None:
    for key in ("kind", "classes", "input_size_hw", "score_threshold", "nms"):
        content = card.to_json()
        del content[key]
        with pytest.raises(CardError, match=f"missing key '{key}'"):
            Card.from_json(content, "x")
    with pytest.raises(CardError, match="not an isodet card"):
        Card.from_json({"model": "yolo"}, "x")
    with pytest.raises(CardError, match="not an isodet card"):
        Card.from_json("[1]", "x")
    with pytest.raises(CardError, match="not valid JSON"):
        Card.from_json("{", "x")


def test_onnx_metadata_equals_what_the_onnx_package_reads(onnx_file: Callable[..., Path], card: Card) -> None:
    path = onnx_file()
    assert read_onnx_metadata(path) == {p.key: p.value for p in onnx.load(path).metadata_props}
    assert read_card(path) == card


def test_onnx_metadata_with_odd_texts(onnx_file: Callable[..., Path], card: Card) -> None:
    path = onnx_file()
    model = onnx.load(path)
    texts = {"isodet": json.dumps(card.to_json()), "empty": "", "umlaut": "größe ✓", "long": "x" * 100_000}
    onnx.helper.set_model_props(model, texts)
    onnx.save(model, path)
    assert read_onnx_metadata(path) == texts


def test_an_onnx_file_without_a_card(onnx_file: Callable[..., Path]) -> None:
    path = onnx_file()
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(CardError, match=r"tiny\.onnx: an ONNX file without an isodet card .*exporter onnx"):
        read_card(path)


def test_broken_files_are_refused(onnx_file: Callable[..., Path], tmp_path: Path) -> None:
    whole = onnx_file().read_bytes()
    path = tmp_path / "broken.onnx"
    card, noticed = read_card(onnx_file()), 0
    for cut in range(0, len(whole), 37):  # every truncation is noticed, or fell behind a card that is whole
        path.write_bytes(whole[:cut])
        try:
            assert read_card(path) == card
        except CardError as error:
            assert str(error).startswith(f"{path}: ")
            noticed += 1
    assert noticed > len(whole) // 37 - 3
    path.write_bytes(b"\x08" + b"\xff" * 40)
    with pytest.raises(CardError, match="not a whole ONNX file"):
        read_card(path)
    path.write_bytes(b"hello")
    with pytest.raises(CardError, match="neither an ONNX file, nor an engine, nor a PyTorch checkpoint"):
        read_card(path)
    with pytest.raises(CardError, match="no such model file"):
        read_card(tmp_path / "gone.onnx")
    with pytest.raises(CardError, match="is a folder"):
        read_card(tmp_path)


def test_sha256(tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000
    (tmp_path / "a").write_bytes(data)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("name", ["a\0b.onnx", "x" * 300 + ".onnx"])
def test_names_that_no_file_can_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(CardError):
        read_card(tmp_path / name)


# ---------------------------------------------------------------------------------------------
# The hash of a graph: what is computed, whatever is said of it


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
