"""What this machine can execute: asked of the driver, never of a library's list of what it was built for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from runtime.backends.cuda.devices import cuda_device_count
from runtime.backends.device import parse_device
from runtime.backends.protocol import BackendError
from runtime.backends.trt.library import Flavour, load_library
from runtime.card.card import Card

LIBRARY_NAMES: dict[Flavour, str] = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}


@dataclass(frozen=True)
class Place:
    """Where an artifact can be run, or why it cannot be run there."""

    backend: str
    """Such as "ONNX Runtime"."""
    device: str
    """cpu or cuda:N."""
    missing: str = ""
    """What this machine lacks for it; "" where it can be tried."""


def places(card: Card, device: str = "auto") -> tuple[Place, ...]:
    """Every place that runs an artifact with this card, those that are missing here among them.

    device: auto for all of them, cpu, cuda or cuda:N for those only. Raises `BackendError` for another word.
    """
    _, index = parse_device(device)
    cuda = f"cuda:{index}"
    every: tuple[Place, ...]
    if card.kind == "onnx":
        plugin = card.nms["kind"] == "plugin"
        lacking = "its NMS is TensorRT's plugin: build an engine from it" if plugin else ""
        every = (
            Place("ONNX Runtime", "cpu", lacking),
            Place("ONNX Runtime", cuda, lacking or no_cuda(cuda)),
        )
    elif card.kind == "checkpoint":
        every = (Place("PyTorch", "cpu"), Place("PyTorch", cuda, no_cuda(cuda)))
    else:
        flavour = card.engine["flavour"]
        every = (Place(LIBRARY_NAMES[flavour], cuda, no_cuda(cuda) or no_library(flavour)),)
    # One that runs on no such device is a row that says so, or it would pass without a score.
    return tuple(place for place in every if device == "auto" or place.device.startswith(device)) or tuple(
        replace(place, missing=place.missing or f"it runs on a GPU, and device {device} was asked for")
        for place in every
    )


def no_cuda(device: str = "cuda:0") -> str:
    """Why a CUDA device is missing here, from the driver itself; "" where it is there."""
    count, index = cuda_device_count(), parse_device(device)[1]
    if index < count:
        return ""
    return f"the CUDA driver finds {count or 'no'} device{'' if count == 1 else 's'} here, {device} is needed"


def no_library(flavour: Flavour) -> str:
    """Why engines of a flavour cannot be loaded here; "" where their library is."""
    try:
        load_library(flavour)
    except BackendError as error:
        return str(error)
    return ""
