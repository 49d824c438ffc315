"""Modules and checkpoints in PyTorch, and their CUDA graphs: a stand-in takes down operators on the CPU, and replays
them into the same memory, as a CUDA graph does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from runtime import BackendOptions, Detector
from runtime.artifact import read_card
from runtime.backends.protocol import BackendError, OutOfMemory
from runtime.backends.torch.backend import TorchBackend
from runtime.backends.torch.graphs import WARM_UP, RecordedModule
from runtime.card.card import Card, CardError
from tests.at_fault import raises
from tests.threads import in_threads


class PixelDetector(nn.Module):
    """The pixel detector of conftest.py in PyTorch; refuses to run in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0, 0, 1, 1, 0.25, 0.25, 0.5, 0.5]]))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        assert images.dtype == torch.uint8 and images.shape[1:] == (32, 48, 3)
        assert not self.training and not torch.is_grad_enabled()
        b, g, r = images[:, 0, 0].float().unbind(1)
        boxes = (r[:, None] * self.weight).reshape(-1, 2, 4)
        scores = torch.stack([g / 255, g / 510], dim=1).to(torch.bfloat16)
        count = (g[:, None] > 0).int() * 2
        return count, boxes, scores, b[:, None].expand(-1, 2).long()


def test_a_module_is_a_backend_like_any_other(card: Card) -> None:
    backend = TorchBackend(PixelDetector().train(), card, "cpu")
    assert (backend.device, backend.fixed_batch) == ("cpu", None)
    raw = backend(np.full((2, 32, 48, 3), (1, 255, 20), np.uint8))
    arrays = raw[:4]
    assert [array.dtype for array in arrays] == [np.int32, np.float32, np.float32, np.int32]
    assert [array.shape for array in arrays] == [(2, 1), (2, 2, 4), (2, 2), (2, 2)]
    assert raw.nms_exact is None
    found, nothing = Detector(backend)([np.full((64, 96, 3), c, np.uint8) for c in ((2, 255, 16), (2, 0, 16))])
    assert found.boxes_xyxy.tolist() == [[0, 0, 32, 32], [8, 8, 16, 16]] and found.names == ["cat", "cat"]
    assert len(nothing) == 0


def test_it_goes_into_eval_mode_at_every_call(card: Card) -> None:
    model = PixelDetector()
    detector = Detector(TorchBackend(model, card, "cpu"))
    for _ in range(2):
        model.train()
        assert len(detector(np.full((32, 48, 3), (1, 255, 20), np.uint8))[0]) == 2


def test_devices(card: Card) -> None:
    with raises(BackendError, key="device"):
        TorchBackend(PixelDetector(), card, "gpu")
    if not torch.cuda.is_available():
        assert TorchBackend(PixelDetector(), card, "auto").device == "cpu"
        with raises(BackendError, key="device"):
            TorchBackend(PixelDetector(), card, "cuda")


def test_a_zip_that_is_no_checkpoint_is_refused(tmp_path: Path, card: Card) -> None:
    path = tmp_path / "a.onnx"  # the name does not decide
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ValueError, match=r"a\.onnx: not an isodet checkpoint"):
        Detector(path)
    torch.save({"format": 1, "card": {"model": {}}, "model": {}}, path)
    with raises(CardError, path=path):
        read_card(path)
    torch.save({"format": 1, "card": card.to_json(), "model": {}}, path)
    assert read_card(path) == card
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"a\.onnx: cannot read this checkpoint"):
        read_card(path)


class Convolution(nn.Module):
    """Scores by a convolution, and which types and layouts it was run in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, bias=False)
        nn.init.constant_(self.conv.weight, 1 / 27)
        self.seen: list[tuple[torch.dtype, bool]] = []

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        out = self.conv(images.permute(0, 3, 1, 2).float() / 255)
        self.seen.append((out.dtype, self.conv.weight.is_contiguous(memory_format=torch.channels_last)))
        scores = out.amax((2, 3)).sort(1, descending=True).values[:, :2]
        n = len(images)
        count = torch.full((n, 1), 2, dtype=torch.int32)
        return count, torch.ones(n, 2, 4), scores, torch.zeros(n, 2, dtype=torch.int32)


@pytest.mark.parametrize(
    ("options", "dtype", "exact"),
    [
        (BackendOptions(), torch.float32, True),
        (BackendOptions(channels_last=True), torch.float32, False),
        (BackendOptions(autocast="bf16"), torch.bfloat16, False),
    ],
)
def test_ways_to_run_a_module(card: Card, options: BackendOptions, dtype: torch.dtype, exact: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), np.uint8)
    model = Convolution()
    plain = model(torch.from_numpy(images))[2].detach().numpy()
    backend = TorchBackend(model, card, "cpu", options)
    given = backend(images).scores
    assert model.seen[-1] == (dtype, options.channels_last) and given.dtype == np.float32
    np.testing.assert_allclose(given, plain, rtol=0 if exact else 2e-2 if dtype is torch.bfloat16 else 1e-5)
    assert backend.context() is backend


def test_compile_is_asked_for_once_and_runs_in_one_thread(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = torch.compile

    def watched(model: nn.Module) -> object:
        calls.append(model)
        return real(model, backend="eager")  # traced for real; the code generator would need minutes

    monkeypatch.setattr(torch, "compile", watched)
    model = PixelDetector()
    backend = TorchBackend(model, card, "cpu", BackendOptions(compile=True))
    plain = TorchBackend(PixelDetector(), card, "cpu")
    for count in (1, 3, 2):
        images = np.full((count, 32, 48, 3), (1, 255, 20), np.uint8)
        for given, expected in zip(backend(images)[:4], plain(images)[:4], strict=True):
            np.testing.assert_array_equal(given, expected)
    assert calls == [model]
    with pytest.raises(BackendError, match="with compile runs one call at a time: expected workers=1"):
        Detector(backend).batcher(workers=2)


def test_a_compiler_that_fails_is_an_error_with_advice(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: object, inputs: object) -> object:
        raise ValueError("no such compiler: cc")

    def unsupported(model: nn.Module) -> object:
        raise RuntimeError("torch.compile is not supported on Python 9")

    real, images = torch.compile, np.full((1, 32, 48, 3), (1, 255, 20), np.uint8)
    monkeypatch.setattr(torch, "compile", lambda model: real(model, backend=broken))
    backend = TorchBackend(PixelDetector(), card, "cpu", BackendOptions(compile=True))
    for _ in range(2):  # the second call compiles again
        with pytest.raises(BackendError, match=r"BackendOptions\(compile=False\).*no such compiler: cc"):
            backend(images)
    monkeypatch.setattr(torch, "compile", unsupported)
    with pytest.raises(BackendError, match=r"BackendOptions\(compile=False\).*Python 9"):
        TorchBackend(PixelDetector(), card, "cpu", BackendOptions(compile=True))


def test_an_error_of_a_compiled_model_itself_stays_its_own(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: real(model, backend="eager"))
    with pytest.raises(AssertionError):
        TorchBackend(PixelDetector(), card, "cpu", BackendOptions(compile=True))(np.zeros((1, 8, 8, 3), np.uint8))


def test_what_auto_chose_and_why(card: Card) -> None:
    told = Detector(TorchBackend(PixelDetector(), card)).runs_on
    there = "PyTorch's current CUDA device" if torch.cuda.is_available() else "PyTorch finds no CUDA device here"
    assert told.startswith(f"PyTorch {torch.__version__.split('+')[0]} on c") and told.endswith(f"({there})")


# From here on: CUDA graphs, taken down on the CPU
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

    def many(number: int) -> None:
        for count in (1, 3, 2) * 8:
            found = detector(list(pictures(*[number] * count)))
            assert [round(float(one.scores[0]) * 255) for one in found] == [number] * count

    in_threads(*(partial(many, 20 + 40 * i) for i in range(4)))
    assert len(graphs) == 3


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


def test_a_broken_recording_says_why(card: Card, graphs: list[FakeGraph], monkeypatch: pytest.MonkeyPatch) -> None:
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
