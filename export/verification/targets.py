"""What this machine can execute. The driver decides, not a library's list of the devices that it was built for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from runtime.backends.cuda.devices import cuda_device_count
from runtime.backends.device import parse_device
from runtime.backends.options import BackendOptions, Engine, OpenVinoPrecision
from runtime.backends.protocol import BackendError
from runtime.backends.trt.library import Flavour, load_library
from runtime.card.card import Card

LIBRARY_NAMES: dict[Flavour, str] = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}


@dataclass(frozen=True)
class Target:
    """A backend and a device for an artifact.

    backend: such as "ONNX Runtime". device: cpu or cuda:N. missing: what this machine lacks for it; "" for nothing.
    options: how it is loaded; the hashes were checked before.
    """

    backend: str
    device: str
    missing: str = ""
    options: BackendOptions = BackendOptions(check_hashes=False)


def targets(
    card: Card, device: str = "auto", engine: Engine = "auto", openvino_precision: OpenVinoPrecision | None = None
) -> tuple[Target, ...]:
    """Every target that can run an artifact with this card, including those that are missing here.

    device: auto: all of them; cpu, cuda or cuda:N: only those; with engine openvino, one of its devices. Raises
    `BackendError` for another value.
    engine: of an ONNX file; auto: ONNX Runtime.
    openvino_precision: OpenVINO on the CPU, too, in float32 and in this precision.
    """
    if card.kind == "onnx" and engine == "openvino":
        return _in_openvino(device, openvino_precision or "float32")
    _, index = parse_device(device)
    cuda = f"cuda:{index}"
    possible: tuple[Target, ...]
    if card.kind == "onnx":
        plugin = card.nms["kind"] == "plugin"
        missing = "its NMS is TensorRT's plugin: build an engine from it" if plugin else ""
        possible = (Target("ONNX Runtime", "cpu", missing), Target("ONNX Runtime", cuda, missing or no_cuda(cuda)))
        if openvino_precision is not None:
            possible = (possible[0], *_in_openvino("cpu", openvino_precision), possible[1])
    elif card.kind == "checkpoint":
        possible = (Target("PyTorch", "cpu"), Target("PyTorch", cuda, no_cuda(cuda)))
    else:
        flavour = card.engine["flavour"]
        possible = (Target(LIBRARY_NAMES[flavour], cuda, no_cuda(cuda) or no_library(flavour)),)
    if chosen := tuple(target for target in possible if device == "auto" or target.device.startswith(device)):
        return chosen
    # Without a target for the device, a row must say so, or the artifact would pass without a score.
    missing = f"it runs on a GPU, and device {device} was asked for"
    return tuple(replace(target, missing=target.missing or missing) for target in possible)


def _in_openvino(device: str, precision: OpenVinoPrecision) -> tuple[Target, ...]:
    device = "cpu" if device == "auto" else device
    return tuple(
        Target("OpenVINO", device, options=BackendOptions(engine="openvino", precision=p, check_hashes=False))
        for p in dict.fromkeys(("float32", precision))
    )


def no_cuda(device: str = "cuda:0") -> str:
    """Why a CUDA device is missing, according to the driver; "" if it exists."""
    count, index = cuda_device_count(), parse_device(device)[1]
    if index < count:
        return ""
    return f"the CUDA driver finds {count or 'no'} device{'' if count == 1 else 's'} here, {device} is needed"


def no_library(flavour: Flavour) -> str:
    """Why engines of a flavour cannot be loaded; "" if their library is installed."""
    try:
        load_library(flavour)
    except BackendError as error:
        return str(error)
    return ""
