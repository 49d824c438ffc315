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
from tests.runtime.conftest import make_card


def test_a_card_survives_json() -> None:
    card = make_card(
        batch=4, versions={"torch": "2.15"}, hashes={"weights": "ab"}, model={"neck": {"levels": [3, 7]}},
        metrics={"map": 41.5}, created="2026-11-20T10:00:00Z", verification={"passed": True}, threshold=1,
    )  # fmt: skip
    for form in (card.to_json(), json.dumps(card.to_json())):
        assert Card.from_json(form, "x.onnx") == card
    assert card.to_json()["format"] == 1 and card.to_json()["classes"] == ["ant", "bee", "cat"]


NMS = {"kind": "auto", "iou": 0.6, "candidates": 10, "detections": 1}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 2), ("format", "1"), ("format", True), ("kind", "cake"), ("classes", []), ("classes", "ant"),
        ("classes", ["a", "a"]), ("classes[1]", ["a", 3]), ("input_size_hw", [32]), ("input_size_hw", [32, 0]),
        ("input_size_hw[0]", [32.0, 32.0]), ("batch", 0), ("batch", "any"), ("color", "rgb"), ("input", "yuv"),
        ("letterbox", {"align": "center", "fill": 114, "interpolation": "linear"}), ("letterbox", "top-left"),
        ("source_size_hw", [1080]), ("precision", "fp8"), ("threshold", 1.5), ("score_threshold", "low"),
        ("nms.kind", NMS | {"kind": "soft"}), ("nms.sigma", NMS | {"sigma": 0.5}),
        ("nms.certificate", NMS | {"certificate": "yes"}), ("nms.detections", NMS | {"detections": 0}),
        ("nms.detections", NMS | {"detections": 10**400}), ("nms.candidates", NMS | {"candidates": 10**400}),
        ("nms.candidates", NMS | {"candidates": (1 << 20) + 1}), ("nms.candidates", NMS | {"candidates": -1}),
        ("nms.detections", {key: NMS[key] for key in ("kind", "iou", "candidates")}), ("nms.iou", NMS | {"iou": "x"}),
        ("versions.torch", {"torch": 2}), ("model", []), ("created", 5), ("colour", "bgr"),
    ],
)  # fmt: skip
def test_bad_cards_name_the_source_and_the_key(card: Card, key: str, value: Any) -> None:
    with raises(CardError, key=key, path="some/file.onnx") as error:
        Card.from_json({**card.to_json(), re.split(r"[.\[]", key)[0]: value}, "some/file.onnx")
    assert str(error.value).startswith("some/file.onnx: card: ")


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"format": 2}, "newer than the 1 that this isodet reads; upgrade"),
        ({"nms": NMS | {"sigma": 0.5}}, "a newer isodet may read it"), ({"colour": "bgr"}, "did you mean 'color'"),
        ({"input": "float-nchw"}, "color: expected rgb, the order of float-nchw"),
        ({"kind": "cake"}, "one of checkpoint, onnx, engine"),
        ({"nms": NMS | {"kind": "soft"}}, "one of auto, portable"),
    ],
)  # fmt: skip
def test_what_a_bad_card_should_say_is_told(card: Card, change: dict[str, Any], advice: str) -> None:
    with pytest.raises(CardError, match=advice):
        Card.from_json({**card.to_json(), **change}, "x")


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


# From here on: the hash of a graph
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
