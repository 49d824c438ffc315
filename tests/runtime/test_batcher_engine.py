"""The batcher and its engine: errors of one batch, contexts, batch sizes, memory that is short."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from runtime.backends.ort.backend import OrtBackend
from runtime.backends.protocol import Backend, BackendError, OutOfMemory, RawOutputs, joined, rows_of
from runtime.backends.torch.backend import TorchBackend
from runtime.card.card import Card
from runtime.detector import Detector
from tests.runtime.echo import FOREVER, Echo, frame, number


def test_an_engine_that_raises_fails_its_batch_only(card: Card) -> None:
    def odd(numbers: list[int]) -> None:
        if numbers[0] == 2:
            raise BackendError("engine fell over")

    with Detector(Echo(card, before=odd), threshold=0.0).batcher(2, FOREVER) as batcher:
        futures = [batcher.submit(frame(i)) for i in range(6)]
    assert [f.exception() is None for f in futures] == [True, True, False, False, True, True]
    with pytest.raises(BackendError, match="engine fell over"):
        futures[3].result()
    assert batcher.metrics().failed == 2


def test_outputs_that_are_no_detections_fail_their_frame_only(card: Card) -> None:
    class Wrong(Echo):
        def __call__(self, images: np.ndarray) -> RawOutputs:
            raw = super().__call__(images)
            raw.labels[1] = 77
            return raw

    with Detector(Wrong(card), threshold=0.0).batcher(3, FOREVER) as batcher:
        futures = [batcher.submit(frame(i)) for i in range(3)]
    assert [f.exception() is None for f in futures] == [True, False, True]
    assert "expected 0 to 2, got 77" in str(futures[1].exception())


def test_several_workers_want_a_backend_that_allows_them(card: Card) -> None:
    class Single(Echo):
        context = Backend.context

    with pytest.raises(BackendError, match="echo runs one call at a time: expected workers=1"):
        Detector(Single(card)).batcher(workers=2)

    both = threading.Barrier(2, timeout=60)
    with Detector(Echo(card, before=lambda _: both.wait() and None), threshold=0.0).batcher(1, 0, workers=2) as batcher:
        futures = [batcher.submit(frame(i)) for i in range(4)]  # a batch passes only while another one runs
    assert [number(f.result()) for f in futures] == [0, 1, 2, 3]


@pytest.mark.parametrize("fixed", [None, 4])
def test_batches_keep_to_what_the_graph_takes(card: Card, fixed: int | None) -> None:
    echo = Echo(card, max_batch=fixed or 6)
    echo.fixed_batch = fixed  # type: ignore[assignment]
    with Detector(echo, threshold=0.0).batcher(64, 5) as batcher:
        futures = [batcher.submit(frame(i)) for i in range(14)]
    assert [number(f.result()) for f in futures] == list(range(14)) and batcher.max_batch == (fixed or 6)
    assert all(len(b) == 4 if fixed else len(b) <= 6 for b in echo.batches)


def test_memory_that_is_short_makes_batches_smaller(card: Card, caplog: pytest.LogCaptureFixture) -> None:
    def small(numbers: list[int]) -> None:
        if len(numbers) > 3 or numbers[0] == 666:
            raise OutOfMemory("out of memory")

    echo = Echo(card, before=small)
    detector = Detector(echo, threshold=0.0)
    with detector.batcher(16, FOREVER) as batcher:
        futures = [batcher.submit(frame(i)) for i in range(32)]
        assert [number(f.result(60)) for f in futures] == list(range(32))
    (warning,) = caplog.records
    assert warning.getMessage().startswith("cpu has no memory for a batch of 16: batches of 2 from now on")
    assert [number(d) for d in detector([frame(i) for i in range(5)])] == list(range(5))
    assert [len(b) for b in echo.batches[:3]] == [16, 8, 4] and {len(b) for b in echo.batches[3:]} == {2, 1}
    with pytest.raises(OutOfMemory):  # one image does not fit
        detector(frame(666))
    assert len(caplog.records) == 1


def test_outputs_of_parts_are_those_of_the_whole(card: Card) -> None:
    """Also where a graph leaves an output out, as one without NMS does."""
    whole = Echo(card)(np.stack([frame(i) for i in range(5)]))
    for raw in (whole, whole._replace(num_dets=None)):  # type: ignore[arg-type]
        again = joined([rows_of(raw, slice(0, 2)), rows_of(raw, slice(2, 5))])
        for column, expected in zip(again, raw, strict=True):
            np.testing.assert_array_equal(column, expected)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("bfc_arena.cc:376 AllocateRawInternal Failed to allocate memory for requested buffer of size 83", OutOfMemory),
        ("CUDA failure 2: out of memory ; GPU=0", OutOfMemory),
        ("Got invalid dimensions for input: images", BackendError),
    ],
)
def test_onnx_runtime_says_in_words_that_memory_is_short(
    onnx_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, words: str, kind: type[BackendError]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(words)

    backend = OrtBackend(onnx_file(), "cpu", threads=1)
    monkeypatch.setattr(backend, "_session", SimpleNamespace(run=fail))
    with pytest.raises(BackendError, match=f"failed on a batch of 2: .*{words[-12:]}") as caught:
        backend(np.zeros((2, 32, 48, 3), np.uint8))
    assert caught.type is kind


def test_pytorch_has_an_error_for_it(card: Card) -> None:
    class Large(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    with pytest.raises(OutOfMemory, match="failed on a batch of 3: CUDA out of memory"):
        TorchBackend(Large(), card, "cpu")(np.zeros((3, 32, 48, 3), np.uint8))


def test_real_engines_run_in_several_threads_on_one_set_of_weights(onnx_file: Callable[..., Path]) -> None:
    detector = Detector(onnx_file(), device="cpu", threads=1, threshold=0.0)
    frames = [np.full((32 + i, 48, 3), (i % 3, 100 + i, 8), np.uint8) for i in range(40)]
    with detector.batcher(4, 0, workers=3) as batcher:
        found = [future.result() for future in [batcher.submit(f) for f in frames]]
    for d, alone in zip(found, detector(frames), strict=True):
        np.testing.assert_array_equal(d.boxes_xyxy, alone.boxes_xyxy)
        np.testing.assert_array_equal(d.scores, alone.scores)


def test_page_locked_memory_that_is_short_costs_speed_and_no_frame(
    card: Card, caplog: pytest.LogCaptureFixture
) -> None:
    class Short(Echo):
        device = "cuda:0"

        def host_memory(self, size: int) -> np.ndarray:
            raise OutOfMemory("cannot lock")

    with Detector(Short(card), threshold=0.0).batcher(4, 1) as batcher:
        assert [number(batcher.submit(frame(i)).result(30)) for i in range(8)] == list(range(8))
    assert "through ordinary memory: cannot lock" in caplog.text
