"""What every backend is, and what it gives."""

from __future__ import annotations

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


Images = NDArray[np.uint8] | Sequence["DeviceFrame"]
"""A batch uint8 [B, H, W, 3] in host memory, or B frames on a GPU."""

TimedCall = Callable[[Any], tuple["RawOutputs", dict[str, float]]]
"""Images to outputs, and the seconds of "host to device", "engine" and "device to host". A call that is not timed waits
once, at its end, so that these are its parts and not its speed."""


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


class Backend(ABC):
    """Runs one model on batches of letterboxed pictures. Derive from it; what is not abstract has a default.

    card: What the model says of itself.
    name: Such as 'ONNX Runtime 1.20'.
    device: 'cpu' or 'cuda:N'.
    why: Why it is on this device; may be empty.
    max_batch: Most images that a caller should hand over at once.
    fixed_batch: The one batch size that the graph takes, or None where any will do.
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

        So it is whatever form the graph takes: see `graph_input`. `images` has been read when it returns, and is the
        caller's again. Raises `OutOfMemory` where a smaller batch might do, `BackendError` otherwise.
        """

    @property
    def takes_device_frames(self) -> bool:
        """Whether a call takes `runtime.images.device_frames.DeviceFrame`s of its own GPU, too."""
        return False

    @property
    def timed(self) -> TimedCall | None:
        """As a call, with the seconds of the copies and of the work; None where nothing is copied."""
        return None

    def context(self) -> Backend:
        """What one more thread calls while others call this one, on the same weights; it may be this one.

        Raises `BackendError` where calls cannot run side by side.
        """
        raise BackendError(f"{self.name} runs one call at a time: expected workers=1")

    def host_memory(self, size: int) -> NDArray[np.uint8]:
        """Memory of `size` bytes for pictures that go to it: page-locked where it copies them to a GPU.

        For what is used again and again: such memory is dear to get. Raises `OutOfMemory` where there is none.
        """
        return np.empty(size, np.uint8)

    @property
    def runs_on(self) -> str:
        """What runs, on which device, and why: 'ONNX Runtime 1.31.1 on cpu (CUDA finds no device here)'."""
        return f"{self.name} on {self.device}{f' ({self.why})' if self.why else ''}"
