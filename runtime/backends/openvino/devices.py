"""Which of OpenVINO's devices runs a model, and whether it computes in a precision."""

from __future__ import annotations

from typing import Any

from runtime.backends.options import OpenVinoPrecision
from runtime.backends.protocol import BackendError

_NEEDS: dict[OpenVinoPrecision, str] = {"float32": "FP32", "bf16": "BF16", "fp16": "FP16"}
"""What OpenVINO calls them among the capabilities of a device."""
HINTS: dict[OpenVinoPrecision, str] = {"float32": "f32", "bf16": "bf16", "fp16": "f16"}
"""Its values of INFERENCE_PRECISION_HINT."""


def find_device(core: Any, device: str) -> tuple[str, str]:
    """OpenVINO's name of `device`, and why it is this one.

    auto: the CPU, where float32 is float32. Others by OpenVINO's own names in any case: cpu, gpu, gpu.1, npu, and
    auto:gpu,cpu for its own choice among several. Raises `BackendError` for one that is not here.
    """
    here = tuple(map(str, core.available_devices))
    if device == "auto":
        others = [name for name in here if name != "CPU"]
        return "CPU", f"OpenVINO also finds {', '.join(others)}: device={others[0].lower()!r}" if others else ""
    name = device.upper().replace("GPU:", "GPU.")
    kind, _, listed = name.partition(":")
    wanted = tuple(filter(None, listed.split(","))) if kind == "AUTO" else (name,)
    for one in wanted:
        # GPU is the first of GPU.0, GPU.1; where there is one it is listed as GPU.
        if one not in here and f"{one}.0" not in here and not (one == "GPU.0" and "GPU" in here):
            raise BackendError.of(
                "device",
                f"OpenVINO finds no {one} here, only {', '.join(here)}; expected cpu, gpu, gpu.N, npu, or "
                "auto:gpu,cpu for its own choice among them",
            )
    if not wanted:
        raise BackendError.of("device", f"expected devices behind auto:, as auto:gpu,cpu; got {device!r}")
    return name, "as asked"


def check_precision(core: Any, device: str, precision: OpenVinoPrecision) -> None:
    """Raise `BackendError` where a device of `device` does not compute in `precision`.

    OpenVINO itself would take the next precision that the device has, without a word.
    """
    for one in device.partition(":")[2].split(",") if device.startswith("AUTO:") else [device]:
        has = core.get_property(one, "OPTIMIZATION_CAPABILITIES")
        if _NEEDS[precision] not in has:
            usable = [name for name, need in _NEEDS.items() if need in has]
            full = core.get_property(one, "FULL_DEVICE_NAME")
            raise BackendError.of(
                "precision", f"{one} ({full}) does not compute in {precision}; it has {', '.join(usable)}"
            )
