"""How far a graph may be from PyTorch: fakes of a network, and of files of it, whose boxes move on demand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.options import ExportError
from export.verification.first_check import run_check
from runtime import Card, Detections

CARD = Card("onnx", ("a",), (40, 60), 0.1, {"kind": "portable", "iou": 0.5, "candidates": 100, "detections": 100})
CORNERS = np.stack(np.meshgrid(np.arange(10.0), np.arange(10.0)), axis=-1).reshape(100, 2) * 50


@pytest.mark.parametrize(
    ("precision", "lively", "lost", "passes"),
    [
        ("fp32", 0, 2, True), ("fp32", 20, 3, False),
        ("int8", 0, 10, True), ("int8", 0, 11, False),
        ("int8", 20, 30, True), ("int8", 20, 31, False), ("fp16", 20, 100, False),
    ],
)  # fmt: skip
def test_8_and_16_bits_may_move_boxes_hardly_farther_than_one_gray_level_does(
    monkeypatch, precision, lively, lost, passes
):
    """lively: how many of PyTorch's 100 boxes lie where the pixels say; lost: how many the file has elsewhere."""

    class Fake:
        def __init__(self, backend: object, threshold: float):
            self.file = isinstance(backend, Path)

        def __call__(self, frames: list[np.ndarray]) -> list[Detections]:
            found = []
            for frame in frames:
                corners = CORNERS.copy()
                corners[:lively, 0] += 1000 + int(frame.ravel().astype(int) @ np.arange(frame.size)) % 5000 * 1000
                corners[: lost if self.file else 0, 1] += 10**6
                boxes = np.concatenate([corners, corners + 20], axis=1).astype(np.float32)
                found.append(Detections(boxes, np.full(100, 0.5, np.float32), np.zeros(100, np.int32), ("a",)))
            return found

    monkeypatch.setattr("export.verification.first_check.Detector", Fake)
    monkeypatch.setattr("export.verification.first_check.TorchBackend", lambda *_: None)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8)
    said: list[str] = []
    check: Any = run_check  # of no real network
    if passes:
        check(Path("x.onnx"), None, replace(CARD, precision=precision), pixels, said.append)
        assert len(said) == (lost == 30) and all("PyTorch 60 where one value in a hundred" in line for line in said)
    else:
        with pytest.raises(ExportError, match=f"{3 * lost} of 300 boxes missing"):
            check(Path("x.onnx"), None, replace(CARD, precision=precision), pixels, said.append)
