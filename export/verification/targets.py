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
class Target:
    """Where an artifact can be run, or why it cannot be run there."""

    backend: str
    """Such as "ONNX Runtime"."""
    device: str
    """cpu or cuda:N."""
    missing: str = ""
    """What this machine lacks for it; "" where it can be tried."""


def targets(card: Card, device: str = "auto") -> tuple[Target, ...]:
    """Every target that runs an artifact with this card, those that are missing here among them.

    device: auto for all of them, cpu, cuda or cuda:N for those only. Raises `BackendError` for another word.
    """
    _, index = parse_device(device)
    cuda = f"cuda:{index}"
    every: tuple[Target, ...]
    if card.kind == "onnx":
        plugin = card.nms["kind"] == "plugin"
        lacking = "its NMS is TensorRT's plugin: build an engine from it" if plugin else ""
        every = (
            Target("ONNX Runtime", "cpu", lacking),
            Target("ONNX Runtime", cuda, lacking or no_cuda(cuda)),
        )
    elif card.kind == "checkpoint":
        every = (Target("PyTorch", "cpu"), Target("PyTorch", cuda, no_cuda(cuda)))
    else:
        flavour = card.engine["flavour"]
        every = (Target(LIBRARY_NAMES[flavour], cuda, no_cuda(cuda) or no_library(flavour)),)
    # One that runs on no such device is a row that says so, or it would pass without a score.
    return tuple(target for target in every if device == "auto" or target.device.startswith(device)) or tuple(
        replace(target, missing=target.missing or f"it runs on a GPU, and device {device} was asked for")
        for target in every
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
