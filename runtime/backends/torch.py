"""PyTorch: runs a checkpoint, or the model that is being trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runtime.backends import BackendError, OutOfMemory, RawOutputs, check_device
from runtime.card import Card

try:
    import torch
except ImportError as error:
    raise BackendError(
        f"a .pt checkpoint needs PyTorch: pip install 'isodet[train]', or use the exported .onnx ({error})"
    ) from error

if TYPE_CHECKING:
    from torch import nn


class TorchBackend:
    """A module `model(images uint8 [B, H, W, 3]) -> (num_dets, boxes, scores, labels)`, as `models.deploy.Deploy`.

    The module is moved to `device` and put into eval mode at every call, and stays so: a training loop
    that shares its layers calls `.train()` before it goes on. See `runtime.backends.Backend`.
    """

    def __init__(self, model: nn.Module, card: Card, device: str | torch.device = "auto") -> None:
        self.card = card
        self.name = f"PyTorch {torch.__version__.partition('+')[0]}"
        self._device = _resolve(str(device))
        self.device = str(self._device)
        self.model = model.to(self._device)
        self.fixed_batch: int | None = None
        self.max_batch = 16 if self._device.type == "cpu" else 32

    @classmethod
    def load(cls, path: str | Path, device: str = "auto", threads: int | None = None) -> TorchBackend:
        """The checkpoint at `path`. `threads` sets PyTorch's CPU threads, which are those of the process.

        Raises `CardError` or `models.checkpoint.CheckpointError` for a file that cannot be used.
        """
        from models.checkpoint import load_detector  # here and below only: the networks are not the runtime's

        model, card = load_detector(path)
        if threads is not None:
            torch.set_num_threads(threads)
        return cls(model, Card.from_json(card, path), device)

    @torch.no_grad()  # not inference_mode: tensors that a model caches on the way may go on into training
    def __call__(self, images: NDArray[np.uint8]) -> RawOutputs:
        self.model.eval()
        try:
            num_dets, boxes, scores, labels = self.model(torch.from_numpy(images).to(self._device))
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()  # the blocks kept for the larger batch are in the way of a smaller one
            raise OutOfMemory(f"{self.name} failed on a batch of {len(images)}: {error}") from error
        return RawOutputs(
            num_dets.cpu().numpy().astype(np.int32, copy=False),
            boxes.float().cpu().numpy(),
            scores.float().cpu().numpy(),
            labels.cpu().numpy().astype(np.int32, copy=False),
        )

    def context(self) -> TorchBackend:
        """Itself: a module in eval mode may be called from several threads."""
        return self


def read_checkpoint_card(path: str | Path) -> Card:
    """The card in the checkpoint at `path`. Raises `CardError`, or `CheckpointError` for a broken file."""
    from models.checkpoint import read_checkpoint

    return Card.from_json(read_checkpoint(path)["card"], path)


def _resolve(device: str) -> torch.device:
    check_device(device)
    if device == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    if device == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(device.partition(":")[2] or 0)
    if index >= count:
        raise BackendError(f"device {device}: PyTorch finds {count} CUDA devices here; use cpu, or check nvidia-smi")
    return torch.device("cuda", index)
