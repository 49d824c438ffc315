"""ONNX Runtime's TensorRT for RTX provider: a plugin in a package of its own, which onnxruntime loads on request."""

from __future__ import annotations

import ctypes
import logging
import threading
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import onnxruntime

from runtime.backends.device import parse_device
from runtime.backends.protocol import BackendError

_log = logging.getLogger(__name__)

_OLDEST = (1, 25)  # IOBinding needs the device "cuda", which older builds without the CUDA provider do not know

_lock = threading.Lock()
_registered: set[str] = set()


def plugin() -> ModuleType:
    """The plugin's package. The first call in a process registers its library with onnxruntime.

    Raises `BackendError` where onnxruntime is too old, the package is missing, or its library does not load.
    """
    version = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    if version < _OLDEST or not hasattr(onnxruntime, "register_execution_provider_library"):
        reason = f"onnxruntime {onnxruntime.__version__} is too old for it: expected 1.25 or later"
        raise _refusal(f": {reason} (pip install -U onnxruntime, with Python 3.11 or later)")
    try:
        import onnxruntime_ep_nv_tensorrt_rtx as package
    except ImportError as error:
        raise _refusal(f" needs its plugin: pip install 'isodet[rtx-ep]' ({error})") from error
    with _lock:
        name = package.get_ep_name()
        if name not in _registered:
            try:
                _register(name, Path(package.get_library_path()))
            except Exception as error:  # onnxruntime's errors have no common base but Exception
                reason = " ".join(str(error).split())
                advice = "libcuda and libnvidia-ml come with NVIDIA's driver, the rest with the package"
                raise _refusal(f": its library does not load: {reason} ({advice})") from error
            _registered.add(name)
    return package


def _refusal(reason: str) -> BackendError:
    return BackendError(f'provider="rtx"{reason}', key="provider")


def _register(name: str, library: Path) -> None:
    # Version 0.5.0 brings a CUDA runtime, but the loader would not look for it there.
    for cudart in sorted(library.parent.glob("libcudart.so.*")):
        ctypes.CDLL(str(cudart))
    try:
        onnxruntime.register_execution_provider_library(name, str(library))
    except Exception as error:
        if "already registered" not in str(error):  # by the program that we run in, which is as good
            raise


def find_device(device: str) -> tuple[str, str]:
    """'cuda:N', and why, for auto, cuda or cuda:N. Raises `BackendError` where the provider has no such device."""
    devices = _devices()
    index = min(devices) if device == "auto" else parse_device(device)[1]
    if index not in devices:
        names = ", ".join(f"cuda:{number}" for number in sorted(devices))
        raise BackendError(f'device {device}: provider="rtx" has {names} here', key="device")
    why = f"the first of {len(devices)} devices of {plugin().get_ep_name()}" if device == "auto" else "as asked"
    return f"cuda:{index}", why


def open_session(path: str | Path, session_options: Any, index: int, settings: dict[str, str]) -> Any:
    """A session of this provider. A warning names the nodes that it does not take, which run on the CPU.

    Raises `BackendError` where it takes no node at all, and what ONNX Runtime raises.
    """
    name = plugin().get_ep_name()
    session_options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session_options.add_provider_for_devices([_devices()[index]], settings)
    session = onnxruntime.InferenceSession(str(path), session_options, enable_fallback=0)
    taken, left = 0, Counter[str]()
    for part in session.get_provider_graph_assignment_info():
        nodes = part.get_nodes()
        if part.ep_name == name:
            taken += len(nodes)
        else:
            left.update(node.op_type for node in nodes)
    if not taken:
        raise BackendError(f"{name} takes no part of the graph: all of it would run on the CPU")
    if left:
        rest = ", ".join(f"{count} {kind}" for kind, count in sorted(left.items()))
        _log.warning("%s: %s takes %d nodes and leaves to the CPU: %s", path, name, taken, rest)
    return session


def _devices() -> dict[int, Any]:
    """The provider's devices by CUDA index. Raises `BackendError` with the provider's reason where it has none."""
    name = plugin().get_ep_name()
    memory = onnxruntime.OrtDeviceMemoryType.DEFAULT
    # This object chooses the device: the option device_id of other providers is an error here.
    devices = {d.memory_info(memory).device_id: d for d in onnxruntime.get_ep_devices() if d.ep_name == name}
    if not devices:
        advice = 'provider="cuda" runs on NVIDIA GPUs that this one does not'
        raise _refusal(f": no device: {_why_none(name)}; {advice}")
    return devices


def _why_none(name: str) -> str:
    """The provider's reasons against the GPUs of this machine."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state  # there is no public name for its two functions

    if not hasattr(state, "get_hardware_devices"):
        return f"onnxruntime {onnxruntime.__version__} lists none, and cannot say why (check nvidia-smi)"
    ask = state.get_hardware_device_ep_incompatibility_details
    gpus = [gpu for gpu in state.get_hardware_devices() if gpu.type.name == "GPU"]
    notes = dict.fromkeys(ask(name, gpu).get("notes") or "the provider gives no reason" for gpu in gpus)
    return "; ".join(notes).rstrip(".") or "onnxruntime finds no GPU in this machine (check nvidia-smi)"
