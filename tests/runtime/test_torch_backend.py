from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from runtime.backends import BackendError
from runtime.backends.torch import TorchBackend
from runtime.card import Card, CardError
from runtime.detector import Detector


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
    with pytest.raises(BackendError, match="device: expected"):
        TorchBackend(PixelDetector(), card, "gpu")
    if not torch.cuda.is_available():
        assert TorchBackend(PixelDetector(), card, "auto").device == "cpu"
        with pytest.raises(BackendError, match="PyTorch finds 0 CUDA devices"):
            TorchBackend(PixelDetector(), card, "cuda")


def test_a_zip_that_is_no_checkpoint_is_refused(tmp_path: Path, card: Card) -> None:
    path = tmp_path / "a.onnx"  # the name does not decide
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ValueError, match=r"a\.onnx: not an isodet checkpoint"):
        Detector(path)
    torch.save({"format": 1, "card": {"model": {}}, "model": {}}, path)
    from runtime.card import read_card

    with pytest.raises(CardError, match=r"a\.onnx: not an isodet card"):
        read_card(path)
    torch.save({"format": 1, "card": card.to_json(), "model": {}}, path)
    assert read_card(path) == card
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"a\.onnx: cannot read this checkpoint"):
        read_card(path)
