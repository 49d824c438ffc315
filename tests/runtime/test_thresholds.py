"""Thresholds of single classes: in the card, and applied by the detector where asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from isodet.errors import ArgumentError
from runtime.__main__ import main
from runtime.backends.protocol import Backend, RawOutputs
from runtime.card.card import Card, CardError
from runtime.detector import Detector
from tests.at_fault import raises

SCORES = (0.9, 0.7, 0.6, 0.5, 0.35, 0.2)
LABELS = (0, 1, 0, 1, 2, 2)


class Fixed(Backend):
    """A backend that always finds the same six."""

    name, device, max_batch, fixed_batch = "fixed", "cpu", 4, None

    def __init__(self, card: Card) -> None:
        self.card = card

    def __call__(self, images: np.ndarray) -> RawOutputs:
        n = len(images)
        boxes = np.tile(np.array([[2, 2, 20, 20]], np.float32), (n, 6, 1))
        boxes[:, 2] = [30, 40, 31, 41]  # in the gray border: never reported
        scores = np.tile(np.array(SCORES, np.float32), (n, 1))
        return RawOutputs(np.full((n, 1), 6, np.int32), boxes, scores, np.tile(np.array(LABELS, np.int32), (n, 1)))


def kept(detector: Detector, **keywords: object) -> list[float]:
    (found,) = detector(np.zeros((28, 48, 3), np.uint8), **keywords)  # type: ignore[arg-type]
    return [round(float(s), 2) for s in found.scores]


def test_each_class_has_its_own(make_card_with: Callable[..., Card]) -> None:
    detector = Detector(Fixed(make_card_with(threshold=0.3, thresholds={"ant": 0.95, "cat": 0.2})))
    assert kept(detector) == [0.9, 0.7, 0.5, 0.35]  # as ever: one for all, the card's
    assert kept(detector, threshold="card") == [0.7, 0.5, 0.35, 0.2]  # bee has none of its own: 0.3
    assert kept(detector, threshold={"bee": 0.6}) == [0.9, 0.7, 0.35]
    assert kept(detector, threshold={}) == kept(detector)
    by_card = Detector(detector.backend, threshold="card")
    assert kept(by_card) == [0.7, 0.5, 0.35, 0.2] and kept(by_card, threshold=0.6) == [0.9, 0.7]
    assert [len(f) for _, f in zip("ab", (by_card(np.zeros((28, 48, 3), np.uint8))[0],) * 2, strict=True)] == [4, 4]


def test_what_is_no_threshold(make_card_with: Callable[..., Card]) -> None:
    detector = Detector(Fixed(make_card_with()))
    with raises(ArgumentError, key="threshold") as error:
        kept(detector, threshold={"wasp": 0.5})
    assert "known: ant, bee, cat" in str(error.value)
    for bad in ({"ant": 1.5}, {"ant": float("nan")}, "model"):
        with raises(ArgumentError, key="threshold"):
            kept(detector, threshold=bad)


def test_the_card_carries_them(make_card_with: Callable[..., Card]) -> None:
    plain = make_card_with()
    assert "thresholds" not in plain.to_json() and Card.from_json(plain.to_json(), "old") == plain
    card = replace(plain, thresholds={"ant": 0.25, "bee": 1})
    assert Card.from_json(card.to_json(), "new").thresholds == {"ant": 0.25, "bee": 1}
    for bad in ({"wasp": 0.5}, {"ant": 2}, {"ant": True}, {"ant": "0.5"}, [0.5]):
        with pytest.raises(CardError, match=r"thresholds(\.wasp|\.ant)?: (expected|there is no)"):
            replace(plain, thresholds=bad)


def test_the_command_takes_the_cards(onnx_file: Callable[..., Path], tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), np.full((32, 48, 3), (1, 204, 20), np.uint8))
    assert main(["detect", str(tmp_path / "a.png"), "--model", str(onnx_file()), "--out", str(tmp_path / "o"),
                 "--threshold", "card", "--quiet"]) == 0  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        main(["detect", str(tmp_path / "a.png"), "--threshold", "cards"])
    assert stop.value.code == 2
