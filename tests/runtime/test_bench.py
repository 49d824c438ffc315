from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runtime.bench import STAGES, bench
from runtime.card import CardError
from runtime.image import ImageError, write_image


def test_every_stage_at_every_batch_size(onnx_file: Callable[..., Path]) -> None:
    steps: list[tuple[int, int]] = []
    path = onnx_file()
    result = bench(path, batch_sizes=(1, 3), frame_hw=(60, 80), iterations=7, warmup=1, device="cpu", threads=1,
                   progress=lambda done, total: steps.append((done, total)))  # fmt: skip
    assert [(r.batch_size, r.stage) for r in result.rows] == [(b, s) for b in (1, 3) for s in STAGES]
    assert all(r.iterations == 7 and 0 < r.p50_ms <= r.p95_ms and r.images_per_s > 0 for r in result.rows)
    whole = result.rows[3]
    assert whole.p95_ms >= max(r.p50_ms for r in result.rows[:3])
    assert (result.frame_hw, result.input_size_hw, result.device, result.precision) == (
        (60, 80),
        (32, 48),
        "cpu",
        "fp32",
    )
    assert steps == [(1, 2), (2, 2)] and result.processor
    content = json.loads(json.dumps(result.to_json()))
    assert len(content["rows"]) == 8 and content["frame_hw"] == [60, 80]
    text = result.table()
    assert all(stage in text for stage in STAGES) and str(path) in text and "1 threads" in text


def test_time_is_the_limit_unless_iterations_are_given(onnx_file: Callable[..., Path]) -> None:
    rows = bench(onnx_file(), seconds=0.05, frame_hw=(8, 8), warmup=0, device="cpu").rows
    assert rows[0].iterations >= 5
    spent = sum(r.iterations * r.batch_size / r.images_per_s for r in rows if r.stage == "end-to-end")
    assert 0.03 < spent < 5


def test_a_picture_and_a_fixed_batch(onnx_file: Callable[..., Path], tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", np.zeros((33, 44, 3), np.uint8))
    path = onnx_file(batch=2)
    result = bench(path, picture=tmp_path / "a.png", iterations=2)
    assert result.frame_hw == (33, 44) and {r.batch_size for r in result.rows} == {2}
    with pytest.raises(ValueError, match="the graph takes batches of 2 only, got 1, 2"):
        bench(path, batch_sizes=(1, 2))
    with pytest.raises(ImageError):
        bench(path, picture=tmp_path / "gone.png")


def test_impossible_settings(onnx_file: Callable[..., Path], tmp_path: Path) -> None:
    path = onnx_file()
    with pytest.raises(ValueError, match="batch sizes: expected at least 1"):
        bench(path, batch_sizes=(0,))
    with pytest.raises(ValueError, match="at least 1x1 pixel, got 0x5"):
        bench(path, frame_hw=(0, 5))
    with pytest.raises(ValueError, match="expected seconds > 0"):
        bench(path, seconds=0)
    with pytest.raises(CardError):
        bench(tmp_path / "gone.onnx")
