"""The base of all backends, and their outputs."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isodet.errors import IsodetError
from runtime.card.card import Card

if TYPE_CHECKING:
    from runtime.images.device_frames import DeviceFrame

OUTPUTS = ("num_dets", "boxes", "scores", "labels")
OUTPUT_TYPES = dict(zip((*OUTPUTS, "nms_exact"), (np.int32, np.float32, np.float32, np.int32, np.bool_), strict=True))

Images = NDArray[np.uint8] | Sequence["DeviceFrame"]
"""A batch uint8 [B, H, W, 3] in host memory, or B frames on a GPU."""

TimedCall = Callable[[Any], tuple["RawOutputs", dict[str, float]]]
"""Images to outputs, and the seconds of "host to device", "engine" and "device to host". A timed call waits for the
device after each stage, an ordinary call only at its end: the seconds show the shares of the stages, not the speed."""


class BackendError(IsodetError, RuntimeError):
    """A model that cannot be loaded or run here; the message names the file or device and what to do."""


class OutOfMemory(BackendError):
    """The device has no room for a batch of this size; a smaller one may fit."""


def line_of(error: Exception) -> str:
    """What a library's error says, in one line of at most 300 characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:297]}..."


class RawOutputs(NamedTuple):
    """What a graph gives for B images: up to D detections each; slots past `num_dets` are zero.

    A graph without NMS (`card.nms["kind"]` is none) gives K candidates, and `num_dets` is None; an empty slot has the
    score 0. `runtime.suppression.suppress` turns candidates into detections.
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
    """[B, 1]: whether the portable NMS converged; only from a graph that reports it (`card.nms["certificate"]`)."""


def output_names(card: Card) -> tuple[str, ...]:
    """The names of the outputs of the graph of `card`, in the order of `RawOutputs`."""
    names = OUTPUTS[1:] if card.nms["kind"] == "none" else OUTPUTS
    return (*names, "nms_exact") if card.nms.get("certificate") else names


def raw_outputs(card: Card, values: Sequence[NDArray[Any]]) -> RawOutputs:
    """`RawOutputs` from the arrays of `output_names(card)`, in that order."""
    return RawOutputs(None, *values) if card.nms["kind"] == "none" else RawOutputs(*values)


def input_layout(card: Card) -> tuple[tuple[int, int, int], type[np.uint8] | type[np.float32]]:
    """Shape without the batch, and type, of the input of the graph of `card`."""
    height, width = card.frame_hw
    return ((height, width, 3), np.uint8) if card.input == "uint8-nhwc" else ((3, height, width), np.float32)


def graph_input(card: Card, images: NDArray[np.uint8]) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Pictures uint8 [B, H, W, 3] BGR in the form that the graph of `card` takes, C-contiguous."""
    if card.input == "uint8-nhwc":
        return images
    return np.ascontiguousarray(images[..., ::-1].transpose(0, 3, 1, 2), np.float32) / np.float32(255)


def rows_of(raw: RawOutputs, rows: slice) -> RawOutputs:
    """The outputs of the images `rows`."""
    return raw._replace(**{name: column[rows] for name, column in raw._asdict().items() if column is not None})


def joined(parts: Sequence[RawOutputs]) -> RawOutputs:
    """The outputs of several calls (at least one) as those of one batch."""
    columns = {name: [getattr(part, name) for part in parts] for name in RawOutputs._fields}
    return parts[0]._replace(**{name: np.concatenate(c) for name, c in columns.items() if c[0] is not None})


class Stages:
    """A clock for the stages of a call: the seconds of each, by name. The caller waits for the device before `lap`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begun = time.perf_counter()

    def lap(self, stage: str) -> None:
        """`stage` ends now, and the next one begins."""
        now = time.perf_counter()
        self.seconds[stage], self._begun = now - self._begun, now


class Backend(ABC):
    """Runs one model on batches of letterboxed pictures. Derive from it; what is not abstract has a default.

    card: What the model says of itself.
    name: Such as 'ONNX Runtime 1.20'.
    device: 'cpu' or 'cuda:N'.
    why: Why it runs on this device; may be empty.
    max_batch: The largest batch that a caller should pass.
    fixed_batch: The only batch size that the graph takes; None where it takes any.
    model: The PyTorch module that it runs, or None.
    """

    card: Card
    name: str
    device: str
    why: str = ""
    max_batch: int = 16
    fixed_batch: int | None = None
    model: Any = None

    @abstractmethod
    def __call__(self, images: Images) -> RawOutputs:
        """Detect in `images`: uint8 [B, H, W, 3] BGR, resized by `card.resize_rule()`, C-contiguous; or, where it
        `takes_device_frames`, B frames on its own GPU.

        This is the form of `images` whatever form the graph itself takes (`graph_input` converts). The caller may
        reuse `images` when the call returns. Raises `OutOfMemory` where a smaller batch may fit, `BackendError`
        otherwise.
        """

    @property
    def takes_device_frames(self) -> bool:
        """Whether a call also takes `runtime.images.device_frames.DeviceFrame`s of its own GPU."""
        return False

    @property
    def timed(self) -> TimedCall | None:
        """A call that also gives the seconds of the copies and of the work; None where nothing is copied."""
        return None

    def context(self) -> Backend:
        """A backend on the same weights for one more thread; it may be this one.

        Raises `BackendError` where two calls cannot run at the same time.
        """
        raise BackendError(f"{self.name} runs one call at a time: expected workers=1")

    def host_memory(self, size: int) -> NDArray[np.uint8]:
        """Memory of `size` bytes for batches: page-locked where the backend copies them to a GPU.

        Allocate it once and use it again: page-locked memory is slow to allocate. Raises `OutOfMemory` where none is
        left.
        """
        return np.empty(size, np.uint8)

    @property
    def runs_on(self) -> str:
        """What runs, on which device, and why: 'ONNX Runtime 1.31.1 on cpu (CUDA finds no device here)'."""
        return f"{self.name} on {self.device}{f' ({self.why})' if self.why else ''}"
