"""Backends: what runs the graph. Each is loaded only when a model needs it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from isodet.errors import IsodetError
from runtime.card.card import Card, file_kind

if TYPE_CHECKING:
    from runtime.backends.options import BackendOptions

_log = logging.getLogger(__name__)

OUTPUTS = ("num_dets", "boxes", "scores", "labels")


class BackendError(IsodetError, RuntimeError):
    """A model that cannot be loaded or run here; the message names the file or device and what to do."""


class OutOfMemory(BackendError):
    """The device has no room for a batch of this size; a smaller one may fit."""


class RawOutputs(NamedTuple):
    """What a graph gives for B images: up to D detections each; slots past `num_dets` are zero.

    Of a graph without NMS (`card.nms["kind"]` is none) it is K candidates, and `num_dets` is None; a score of 0 marks
    what is none. `runtime.suppression.suppress` makes detections of them.
    """

    num_dets: NDArray[np.int32] | None
    """[B, 1]"""
    boxes: NDArray[np.float32]
    """[B, D, 4] xyxy, pixels of the input"""
    scores: NDArray[np.float32]
    """[B, D] descending"""
    labels: NDArray[np.int32]
    """[B, D]"""
    nms_exact: NDArray[np.bool_] | None = None
    """[B, 1]: the portable NMS had settled, of a graph that says so (`card.nms["certificate"]`)."""


def output_names(card: Card) -> tuple[str, ...]:
    """What the graph of `card` gives, by name, in the order of `RawOutputs`."""
    names = OUTPUTS[1:] if card.nms["kind"] == "none" else OUTPUTS
    return (*names, "nms_exact") if card.nms.get("certificate") else names


def raw_outputs(card: Card, values: Sequence[NDArray[Any]]) -> RawOutputs:
    """The arrays of `output_names(card)`, in their order."""
    return RawOutputs(None, *values) if card.nms["kind"] == "none" else RawOutputs(*values)


def graph_input(card: Card, images: NDArray[np.uint8]) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Pictures uint8 [B, H, W, 3] BGR in the form that the graph of `card` takes, C-contiguous."""
    if card.input == "uint8-nhwc":
        return images
    return np.ascontiguousarray(images[..., ::-1].transpose(0, 3, 1, 2), np.float32) / np.float32(255)


def rows_of(raw: RawOutputs, rows: slice) -> RawOutputs:
    """The outputs for some of the images."""
    return raw._replace(**{name: column[rows] for name, column in raw._asdict().items() if column is not None})


def joined(parts: Sequence[RawOutputs]) -> RawOutputs:
    """The outputs for all images of several calls, at least one."""
    columns = {name: [getattr(part, name) for part in parts] for name in RawOutputs._fields}
    return parts[0]._replace(**{name: np.concatenate(c) for name, c in columns.items() if c[0] is not None})


class Backend(Protocol):
    """Runs one model on batches of letterboxed pictures.

    More is looked for, and may be missing or None: `context()` (see `another_context`), `host_memory(size)` (see
    `host_memory`), `on_device`, what runs a sequence of `runtime.images.device_frames.DeviceFrame` of its own GPU,
    `timed`, a call with the seconds of its stages (`runtime.backends.timing`), and `why` it is on its device.
    """

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

        So it is whatever form the graph takes: see `graph_input`. `images` has been read when it returns, and is the
        caller's again. Raises `OutOfMemory` where a smaller batch might do, `BackendError` otherwise.
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


def host_memory(backend: Backend, size: int) -> NDArray[np.uint8]:
    """Memory of `size` bytes for pictures that go to `backend`: page-locked where it copies them to a GPU.

    For what is used again and again: such memory is dear to get. Raises `OutOfMemory` where there is none.
    """
    make = getattr(backend, "host_memory", None)
    memory: NDArray[np.uint8] = np.empty(size, np.uint8) if make is None else make(size)
    return memory


def load_backend(
    path: str | Path, device: str = "auto", threads: int | None = None, options: BackendOptions | None = None
) -> Backend:
    """The backend for the model file at `path`, chosen by its content and not by its name.

    `device`: auto, cpu, cuda or cuda:N; what auto chose, and why, is logged (INFO). `threads`: CPU threads of the
    engine, None for its own choice. `options`: see `runtime.backends.options.BackendOptions`.
    Raises `CardError` for a file that is not a model of ours, `BackendError` when it cannot run here.
    """
    backend = _load(path, device, threads, options)
    if device == "auto":
        _log.info("%s: %s", path, where(backend))
    return backend


def _load(path: str | Path, device: str, threads: int | None, options: BackendOptions | None) -> Backend:
    from runtime.backends.options import DEFAULT

    check_device(device)
    if threads is not None and threads < 1:
        raise BackendError.of("threads", f"expected at least 1, got {threads}")
    options = options or DEFAULT
    kind = file_kind(path)
    if kind == "onnx":
        from runtime.backends.ort.backend import OrtBackend

        return OrtBackend(path, device, threads, options)
    if kind == "engine":
        from runtime.backends.trt.backend import TrtBackend

        return TrtBackend(path, device, options)
    from runtime.backends.torch.backend import TorchBackend

    return TorchBackend.load(path, device, threads, options)


def where(backend: Backend) -> str:
    """What runs, on which device, and why there, such as 'ONNX Runtime 1.31.1 on cpu (CUDA finds no device here)'."""
    why = getattr(backend, "why", "")
    return f"{backend.name} on {backend.device}{f' ({why})' if why else ''}"


def check_device(device: str) -> None:
    """Raise `BackendError` unless `device` is auto, cpu, cuda or cuda:N."""
    if device not in ("auto", "cpu", "cuda") and not (device.startswith("cuda:") and device[5:].isdecimal()):
        raise BackendError.of("device", f"expected auto, cpu, cuda or cuda:N, got {device!r}")
