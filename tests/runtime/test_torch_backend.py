from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from runtime.backends.options import BackendOptions
from runtime.backends.protocol import BackendError
from runtime.backends.torch.backend import TorchBackend
from runtime.card.card import Card, CardError
from runtime.detector import Detector
from tests.at_fault import raises


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
    from runtime.artifact import read_card

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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_contexts_on_a_gpu_have_streams_of_their_own(card: Card) -> None:
    backend = TorchBackend(PixelDetector(), card, "cuda")
    other = backend.context()
    images = np.full((2, 32, 48, 3), (1, 255, 20), np.uint8)
    for given, expected in zip(other(images)[:4], backend(images)[:4], strict=True):
        np.testing.assert_array_equal(given, expected)
    assert other._stream is not None and other.model is backend.model
