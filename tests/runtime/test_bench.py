from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pytest import MonkeyPatch

import runtime.bench.bench
from runtime.backends.protocol import Backend, BackendError, RawOutputs
from runtime.bench.bench import BenchOptions, bench
from runtime.bench.stages import BARE, MERGE, STAGES, WHOLE, _share_of, time_turn
from runtime.bench.streams import time_streams
from runtime.card.card import Card, CardError
from runtime.detector import Detector
from runtime.images.image import ImageError, write_image
from runtime.tiles import Tiles

OnnxFile = Callable[..., Path]


def test_every_stage_at_every_batch_size(onnx_file: OnnxFile) -> None:
    steps: list[tuple[int, int]] = []
    path = onnx_file()
    options = BenchOptions(batch_sizes=(1, 3), frame_hw=(60, 80), iterations=7, warmup=1)
    result = bench(path, options, device="cpu", threads=1, progress=lambda *step: steps.append(step))
    # This graph has no node that says it is NMS, and the CPU has no copies: no number is made up for them.
    seen = ("decode", "letterbox", "engine", "un-letterbox", WHOLE, BARE)
    assert [(r.batch_size, r.stage) for r in result.rows] == [(b, s) for b in (1, 3) for s in seen]
    assert all(r.iterations == 7 and 0 < r.p50_ms <= r.p95_ms <= r.p99_ms and r.images_per_s > 0 for r in result.rows)
    assert (result.frame_hw, result.input_size_hw, result.device) == ((60, 80), (32, 48), "cpu")
    assert result.precision == "fp32" and result.processor and steps == [(1, 2), (2, 2)]
    text = result.table()
    assert all(stage in text for stage in (*STAGES, WHOLE, BARE)) and str(path) in text and "1 threads" in text
    assert "within engine: no node" in result.notes["NMS"] and "none: the engine" in result.notes["host to device"]


class Slow(Backend):
    """A backend that takes known times for what it tells apart, and leaves NMS to the runtime."""

    name, device, fixed_batch, max_batch = "slow", "cuda:0", None, 4
    seconds = {"host to device": 0.002, "engine": 0.01, "device to host": 0.004}

    def __init__(self, card: Card) -> None:
        self.card = replace(card, nms={**card.nms, "kind": "none"})

    def timed(self, images: np.ndarray) -> tuple[RawOutputs, dict[str, float]]:
        time.sleep(sum(self.seconds.values()))
        empty = np.zeros((len(images), 5), np.float32)
        return RawOutputs(None, np.zeros((len(images), 5, 4), np.float32), empty, empty.astype(np.int32)), self.seconds

    def __call__(self, images: np.ndarray) -> RawOutputs:
        return self.timed(images)[0]


def test_stages_add_up_to_the_whole_and_a_backends_own_clock_is_taken(card: Card) -> None:
    result = bench(Slow(card), BenchOptions(batch_sizes=(2,), frame_hw=(16, 16), iterations=9, warmup=1))
    p50 = {r.stage: r.p50_ms for r in result.rows}
    assert tuple(p50) == (*STAGES, WHOLE, BARE)
    assert (p50["host to device"], p50["engine"], p50["device to host"]) == pytest.approx((2, 10, 4))
    parts = sum(p50[stage] for stage in STAGES if stage != "decode")
    assert parts <= p50[WHOLE] + 1 and p50[WHOLE] < parts + 8  # sleeping takes longer than asked for
    (ratio,) = result.ratios
    assert 0.3 < ratio.of_bare <= 1.1 and ratio.overhead_ms == pytest.approx(p50[WHOLE] - p50[BARE], abs=3)
    assert "after the engine" in result.notes["NMS"] and "own clock" in result.notes["host to device"]


def test_streams_go_through_the_batcher_and_into_the_json(card: Card) -> None:
    steps: list[tuple[int, int]] = []
    limits = {"iterations": 2, "warmup": 0, "seconds": 0.2, "max_wait_ms": 1}
    options = BenchOptions(batch_sizes=(2, 4), frame_hw=(8, 8), streams=(1, 3), **limits)  # type: ignore[arg-type]
    result = bench(Slow(card), options, progress=lambda *step: steps.append(step))
    assert [(s.batch_size, s.streams) for s in result.streams] == [(2, 1), (2, 3), (4, 1), (4, 3)]
    assert steps == [(n, 6) for n in range(1, 7)]
    for one in result.streams:
        assert 0 < one.mean_batch <= one.batch_size and 0 < one.p50_ms <= one.p95_ms <= one.p99_ms
        assert one.offered_per_s == pytest.approx(0.8 * one.images_per_s) and one.p50_ms >= 10
    content = json.loads(json.dumps(result.to_json()))
    assert set(content) == {
        "model", "engine", "device", "processor", "threads", "precision", "frame_hw", "input_size_hw",
        "inputs_per_frame", "tiles", "rows", "ratios",
        "streams", "notes",
    }  # fmt: skip
    assert set(content["rows"][0]) == {
        "batch_size", "stage", "p50_ms", "p95_ms", "p99_ms", "mean_ms", "images_per_s", "iterations",
    }  # fmt: skip
    assert set(content["ratios"][0]) == {"batch_size", "of_bare", "overhead_ms"}
    assert set(content["streams"][0]) == {
        "streams", "batch_size", "images_per_s", "of_bare", "mean_batch", "offered_per_s", "p50_ms", "p95_ms", "p99_ms",
    }  # fmt: skip
    assert content["frame_hw"] == [8, 8] and content["notes"]["decode"] in result.table()


def test_an_engine_that_fails_under_streams_is_no_measurement(card: Card) -> None:
    class Failing(Slow):
        def __call__(self, images: np.ndarray) -> RawOutputs:
            raise RuntimeError("gone")

    with pytest.raises(BackendError, match="frames were not answered"):
        time_streams(Detector(Failing(card)), [np.zeros((8, 8, 3), np.uint8)], 2, 2, 1.0, 0.05, 100.0)


def test_the_share_of_nms_is_that_of_the_nodes_named_for_it() -> None:
    def event(name: str, microseconds: int, kind: str = "Node") -> dict[str, object]:
        return {"cat": kind, "name": name, "dur": microseconds}

    events = [
        event("conv_kernel_time", 60), event("_inlfunc_EfficientNMS_TRT_node_gt_kernel_time", 15),
        event("_inlfunc_EfficientNMS_TRT_node_gt_fence_before", 99), event("model_run", 999, "Session"),
    ]  # fmt: skip
    assert _share_of(events) == 0.2 and _share_of(events[3:]) == 0.0


def test_time_is_the_limit_unless_iterations_are_given(onnx_file: OnnxFile, monkeypatch: MonkeyPatch) -> None:
    ticks = itertools.count(0, 0.25)  # a quarter of a second from look to look
    monkeypatch.setattr(runtime.bench.bench, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    for seconds, turns in ((0.1, 5), (2.0, 5 + 7)):  # five come before the first look
        rows = bench(onnx_file(), BenchOptions(seconds=seconds, frame_hw=(8, 8), warmup=3), device="cpu").rows
        assert {row.iterations for row in rows} == {turns}


def test_a_picture_and_a_fixed_batch(onnx_file: OnnxFile, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", np.zeros((33, 44, 3), np.uint8))
    path = onnx_file(batch=2)
    result = bench(path, BenchOptions(picture=tmp_path / "a.png", iterations=2))
    assert result.frame_hw == (33, 44) and {r.batch_size for r in result.rows} == {2}
    with pytest.raises(ValueError, match="the graph takes batches of 2 only, got 1, 2"):
        bench(path, BenchOptions(batch_sizes=(1, 2)))
    with pytest.raises(ImageError):
        bench(path, BenchOptions(picture=tmp_path / "gone.png"))


def test_impossible_settings(onnx_file: OnnxFile, tmp_path: Path) -> None:
    path = onnx_file()
    with pytest.raises(ValueError, match="batch_sizes: expected at least 1, got 0"):
        bench(path, BenchOptions(batch_sizes=(0,)))
    with pytest.raises(ValueError, match="frame_hw: expected at least 1, got 0,5"):
        bench(path, BenchOptions(frame_hw=(0, 5)))
    with pytest.raises(ValueError, match="seconds: expected a positive number"):
        bench(path, BenchOptions(seconds=0))
    with pytest.raises(ValueError, match="streams: expected at least 1, got 4,0"):
        bench(path, BenchOptions(streams=(4, 0)))
    with pytest.raises(CardError):
        bench(tmp_path / "gone.onnx")


def test_tiles_of_a_frame_are_timed_with_their_merge(onnx_file: OnnxFile) -> None:
    """A frame of 60x100 is four tiles of the model's 32x48 and itself; the backend takes two at once."""
    path, options = onnx_file(), BenchOptions(batch_sizes=(1, 2), frame_hw=(60, 100), iterations=3, warmup=0)
    result = bench(path, options, device="cpu", threads=1, tiles=Tiles(overlap=0))
    grid = Tiles(overlap=0).grid((60, 100), (32, 48))
    assert result.inputs_per_frame == len(grid.windows) == 7
    assert [r.stage for r in result.rows if r.batch_size == 2][-3:] == [MERGE, WHOLE, BARE]
    assert "7 inputs a frame: tiles of the model's input size, overlap 0, and the whole picture" in result.table()
    plain = bench(path, options, device="cpu", threads=1)
    assert plain.inputs_per_frame == 1 and plain.tiles == "" and MERGE not in plain.notes
    slow = Slow(Detector(path).card)
    turn = time_turn(Detector(slow, tiles=Tiles(overlap=0)), [np.zeros((60, 100, 3), np.uint8)] * 2, [], None)
    calls = -(-2 * 7 // slow.max_batch)
    assert turn["engine"] == pytest.approx(calls * slow.seconds["engine"])
