"""CUDA graphs of checkpoints without a GPU: a stand-in takes down the operators of a module on the CPU, and replays
them into the same memory, as a CUDA graph does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from runtime import BackendOptions, Detector
from runtime.backends.protocol import BackendError, OutOfMemory
from runtime.backends.torch.backend import TorchBackend
from runtime.backends.torch.graphs import WARM_UP, RecordedModule
from runtime.card.card import Card
from tests.at_fault import raises
from tests.runtime.test_torch_backend import PixelDetector

GRAPHS = BackendOptions(cuda_graphs=True)


class Tape(TorchDispatchMode):
    """Runs operators, and remembers them with where their results lie."""

    def __init__(self) -> None:
        super().__init__()
        self.work: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.work.append((func, args, kwargs or {}, out))
        return out


class FakeGraph:
    """In the place of `torch.cuda.CUDAGraph`."""

    made: list[FakeGraph] = []

    def __init__(self) -> None:
        self.tape = Tape()
        self.replays = 0
        FakeGraph.made.append(self)

    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, out in self.tape.work:
            again = func(*args, **kwargs)
            for one, two in zip(_tensors(out), _tensors(again), strict=True):
                if one.data_ptr() != two.data_ptr():
                    one.copy_(two)


def _tensors(out: Any) -> list[Tensor]:
    return [out] if isinstance(out, Tensor) else [part for part in out if isinstance(part, Tensor)]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeGraph]]:
    """Graphs that the backend makes, in order."""

    @contextmanager
    def graph(one: FakeGraph, pool: object, stream: object, capture_error_mode: str) -> Iterator[None]:
        assert pool == "the pool" and capture_error_mode == "thread_local"
        with one.tape:
            yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "the pool")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    FakeGraph.made = []
    yield FakeGraph.made


def recording(card: Card, model: nn.Module) -> TorchBackend:
    """A backend with recordings, on the CPU."""
    backend = TorchBackend(model, card, "cpu")
    backend._graphs = RecordedModule("PyTorch", card.frame_hw, torch.device("cpu"), None)  # type: ignore[arg-type]
    return backend


class Calls(PixelDetector):
    """Counts, and fails where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.fail: dict[int, Exception] = {}

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        self.batches.append(len(images))
        if len(self.batches) in self.fail:
            raise self.fail[len(self.batches)]
        return super().forward(images)


def pictures(*numbers: int) -> np.ndarray:
    return np.stack([np.full((32, 48, 3), (1, number, 16), np.uint8) for number in numbers])


def test_each_size_is_recorded_once_and_batches_between_two_are_padded(card: Card, graphs: list[FakeGraph]) -> None:
    model = Calls().train()
    backend, plain = recording(card, model), TorchBackend(PixelDetector(), card, "cpu")
    rng = np.random.default_rng(0)
    for count in (5, 1, 6, 5, 7, 8, 1, 0, 5):
        images = pictures(*rng.integers(0, 256, count)) if count else pictures(1)[:0]
        for given, expected in zip(backend(images)[:4], plain(images)[:4], strict=True):
            np.testing.assert_array_equal(given, expected)
            assert given.dtype == expected.dtype
    assert model.batches == [6] * (WARM_UP + 1) + [1] * (WARM_UP + 1) + [8] * (WARM_UP + 1)
    assert [graph.replays for graph in graphs] == [4, 3, 2], "every answer comes of a replay"


def test_new_weights_show(card: Card, graphs: list[FakeGraph]) -> None:
    model = PixelDetector()
    backend = recording(card, model)
    before = backend(pictures(100)).boxes.copy()  # on the CPU it is the output itself
    with torch.no_grad():
        model.weight.mul_(2)
    np.testing.assert_array_equal(backend(pictures(100)).boxes, 2 * before)
    assert len(graphs) == 1


def test_calls_take_turns(card: Card, graphs: list[FakeGraph]) -> None:
    detector = Detector(recording(card, PixelDetector()), threshold=0.0)
    wrong: list[int] = []

    def many(number: int) -> None:
        for count in (1, 3, 2) * 8:
            found = detector(list(pictures(*[number] * count)))
            wrong.extend(number for one in found if round(float(one.scores[0]) * 255) != number)

    threads = [threading.Thread(target=many, args=(20 + 40 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == [] and len(graphs) == 3


@pytest.mark.parametrize("call", [1, WARM_UP + 1])
def test_short_memory_while_recording_is_answered_by_a_smaller_batch(
    card: Card, graphs: list[FakeGraph], caplog: pytest.LogCaptureFixture, call: int
) -> None:
    """In the runs before it, and in the recording itself."""
    model = Calls()
    model.fail[call] = torch.OutOfMemoryError("CUDA out of memory.")
    backend = recording(card, model)
    with pytest.raises(OutOfMemory, match=r"failed on a batch of 4: CUDA out of memory"):
        backend(pictures(1, 2, 3, 4))
    model.batches, model.fail = [], {call: model.fail[call]}
    found = Detector(backend, threshold=0.0)(list(pictures(10, 20, 30, 40)))
    assert [round(float(one.scores[0]) * 255) for one in found] == [10, 20, 30, 40]
    assert [m.partition(";")[0] for m in caplog.messages] == [
        "cpu has no memory for a batch of 4: batches of 2 from now on"
    ]
    assert model.batches[call:] == [2] * (WARM_UP + 1)


def test_the_end_of_a_broken_recording_does_not_hide_why(
    card: Card, graphs: list[FakeGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def broken(*_: object, **__: object) -> Iterator[None]:
        try:
            yield
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "graph", broken)
    model = Calls()
    model.fail[WARM_UP + 1] = torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(OutOfMemory, match="CUDA out of memory"):
        recording(card, model)(pictures(1))
    model = Calls()
    model.fail[WARM_UP + 1] = RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with")
    message = "cuda_graphs: PyTorch cannot record a batch of 1: .* when stream is capturing; run it without cuda_graphs"
    with pytest.raises(BackendError, match=message) as raised:
        recording(card, model)(pictures(1))
    assert "\n" not in str(raised.value) and raised.type is BackendError


def test_images_of_another_size_are_not_spread_over_the_input(card: Card, graphs: list[FakeGraph]) -> None:
    for size in ((1, 1), (1, 48), (64, 48)):
        with pytest.raises(BackendError, match=r"expected images \[32, 48, 3\], got \["):
            recording(card, PixelDetector())(np.zeros((2, *size, 3), np.uint8))


def test_where_there_are_none(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    with raises(BackendError, key="cuda_graphs"):
        TorchBackend(PixelDetector(), card, "cpu", GRAPHS)
    resize = {"short": 64, "long": 96, "multiple": 32, "floor": True, "fill_bgr": [0, 0, 0]}
    where = (torch.device("cuda", 0), "as asked")
    monkeypatch.setattr("runtime.backends.torch.backend._resolve", lambda device: where)
    monkeypatch.setattr(PixelDetector, "to", lambda self, *_, **__: self)
    with raises(BackendError, key="cuda_graphs"):
        TorchBackend(PixelDetector(), replace(card, kind="checkpoint", model={}, resize=resize), "cuda", GRAPHS)
