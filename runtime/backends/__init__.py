"""Backends: what runs the graph. Each is loaded only when a model needs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.card import Card, file_kind


class BackendError(RuntimeError):
    """A model that cannot be loaded or run here; the message names the file or device and what to do."""


class OutOfMemory(BackendError):
    """The device has no room for a batch of this size; a smaller one may fit."""


class RawOutputs(NamedTuple):
    """What a graph gives for B images: up to D detections each; slots past `num_dets` are zero."""

    num_dets: NDArray[np.int32]
    """[B, 1]"""
    boxes: NDArray[np.float32]
    """[B, D, 4] xyxy, pixels of the input"""
    scores: NDArray[np.float32]
    """[B, D] descending"""
    labels: NDArray[np.int32]
    """[B, D]"""


def rows_of(raw: RawOutputs, rows: slice) -> RawOutputs:
    """The outputs for some of the images."""
    return raw._replace(**{name: column[rows] for name, column in raw._asdict().items() if column is not None})


def joined(parts: Sequence[RawOutputs]) -> RawOutputs:
    """The outputs for all images of several calls, at least one."""
    columns = {name: [getattr(part, name) for part in parts] for name in RawOutputs._fields}
    return parts[0]._replace(**{name: np.concatenate(c) for name, c in columns.items() if c[0] is not None})


class Backend(Protocol):
    """Runs one model on batches of letterboxed pictures."""

    card: Card
    name: str
    """Such as 'ONNX Runtime 1.20'."""
    device: str
    """'cpu' or 'cuda:N'."""
    max_batch: int
    """Most images that a caller should hand over at once."""
    fixed_batch: int | None
    """The one batch size that the graph takes, or None where any will do."""

    def __call__(self, images: NDArray[np.uint8]) -> RawOutputs:
        """Detect in `images`: uint8 [B, H, W, 3] BGR, resized by `card.resize_rule()`, C-contiguous.

        `images` has been read when it returns, and is the caller's again. Raises `OutOfMemory` where a smaller
        batch might do, `BackendError` otherwise.
        """
        ...


def another_context(backend: Backend) -> Backend:
    """What one more thread calls while others call `backend`, on the same weights.

    A backend offers it as a method `context()`, which may return the backend itself. Raises `BackendError` for one
    that has none, and so runs one call at a time.
    """
    make = getattr(backend, "context", None)
    if make is None:
        raise BackendError(f"{backend.name} runs one call at a time: expected workers=1")
    context: Backend = make()
    return context


def load_backend(path: str | Path, device: str = "auto", threads: int | None = None) -> Backend:
    """The backend for the model file at `path`, chosen by its content and not by its name.

    `device`: auto, cpu, cuda or cuda:N. `threads`: CPU threads of the engine, None for its own choice.
    Raises `CardError` for a file that is not a model of ours, `BackendError` when it cannot run here.
    """
    check_device(device)
    if threads is not None and threads < 1:
        raise BackendError(f"threads: expected at least 1, got {threads}")
    if file_kind(path) == "onnx":
        from runtime.backends.ort import OrtBackend

        return OrtBackend(path, device, threads)
    from runtime.backends.torch import TorchBackend

    return TorchBackend.load(path, device, threads)


def check_device(device: str) -> None:
    """Raise `BackendError` unless `device` is auto, cpu, cuda or cuda:N."""
    if device not in ("auto", "cpu", "cuda") and not (device.startswith("cuda:") and device[5:].isdecimal()):
        raise BackendError(f"device: expected auto, cpu, cuda or cuda:N, got {device!r}")
