"""ONNX Runtime."""

from __future__ import annotations

import ctypes
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends import (
    BackendError,
    OutOfMemory,
    RawOutputs,
    check_device,
    graph_input,
    output_names,
    raw_outputs,
)
from runtime.card import CardError, read_card

try:
    import onnxruntime
except ImportError as error:
    raise BackendError(f"an ONNX file needs onnxruntime: pip install onnxruntime ({error})") from error

_log = logging.getLogger(__name__)

_TYPES = {
    "num_dets": "tensor(int32)", "boxes": "tensor(float)", "scores": "tensor(float)", "labels": "tensor(int32)",
    "nms_exact": "tensor(bool)",
}  # fmt: skip


class OrtBackend:
    """An ONNX file on the CPU, or on a CUDA device when there is one. See `runtime.backends.Backend`."""

    def __init__(self, path: str | Path, device: str = "auto", threads: int | None = None) -> None:
        check_device(device)
        self.card = read_card(path)
        if self.card.nms["kind"] == "plugin":
            raise BackendError(
                f"{path}: its NMS is TensorRT's plugin EfficientNMS_TRT, which ONNX Runtime has not; build an engine "
                "of it, or export with --nms auto, whose one file runs in both"
            )
        self.name = f"ONNX Runtime {onnxruntime.__version__}"
        self.device = _resolve(device)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; they are raised, too
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = self._open(path, options)
        except Exception as error:  # onnxruntime's errors have no common base but Exception
            if self.device == "cpu":
                raise _cannot_load(path, self.device, error) from None
            if device != "auto":
                raise BackendError(f"{path}: cannot run on {self.device}: {_line(error)}") from None
            _log.warning("%s: cannot run on %s, so it runs on the CPU: %s", path, self.device, _line(error))
            self.device = "cpu"
            try:
                self._session = self._open(path, options)
            except Exception as second:
                raise _cannot_load(path, self.device, second) from None
        self.fixed_batch = self._check_graph(path)
        self.max_batch = self.fixed_batch or (16 if self.device == "cpu" else 32)

    def _open(self, path: str | Path, options: Any) -> Any:
        if self.device == "cpu":
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        index = int(self.device.partition(":")[2])
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # CUDA libraries that pip installed
        providers = [("CUDAExecutionProvider", {"device_id": index}), "CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        # A provider that fails to load is left out with no more than a log line.
        if "CUDAExecutionProvider" not in session.get_providers():
            raise BackendError("onnxruntime's CUDA provider did not load (CUDA or cuDNN libraries missing?)")
        return session

    def _check_graph(self, path: str | Path) -> int | None:
        """The fixed batch size or None. Raises `CardError` where the graph is not what its card says."""
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        height, width = self.card.frame_hw
        if self.card.input == "uint8-nhwc":
            kind, shape, written = "tensor(uint8)", [height, width, 3], f"uint8 [B, {height}, {width}, 3]"
        else:
            kind, shape, written = "tensor(float)", [3, height, width], f"float32 [B, 3, {height}, {width}]"
        if len(inputs) != 1 or inputs[0].type != kind or list(inputs[0].shape[1:]) != shape:
            got = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
            raise CardError(f"{path}: expected one input, {written}, as its card says; got {got}")
        expected = {name: _TYPES[name] for name in output_names(self.card)}
        if {o.name: o.type for o in outputs} != expected:
            got = ", ".join(f"{o.name} {o.type}" for o in outputs)
            wanted = ", ".join(f"{name} {kind}" for name, kind in expected.items())
            raise CardError(f"{path}: expected the outputs {wanted}; got {got}")
        self._input = inputs[0].name
        batch = inputs[0].shape[0]
        fixed = batch if isinstance(batch, int) else None
        if (fixed or "dynamic") != self.card.batch:
            raise CardError(f"{path}: card: batch is {self.card.batch!r}, but the graph takes {fixed or 'any batch'}")
        return fixed

    def __call__(self, images: NDArray[np.uint8]) -> RawOutputs:
        try:
            feed = {self._input: graph_input(self.card, images)}
            return raw_outputs(self.card, self._session.run(list(output_names(self.card)), feed))
        except Exception as error:
            message = f"{self.name} failed on a batch of {len(images)}: {_line(error)}"
            raise (OutOfMemory if _out_of_memory(error) else BackendError)(message) from error

    def context(self) -> OrtBackend:
        """Itself: an ONNX Runtime session may be called from several threads."""
        return self


def _resolve(device: str) -> str:
    """'cpu' or 'cuda:N'. Raises `BackendError` when CUDA is asked for and not there."""
    if device == "cpu":
        return "cpu"
    provided = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    index = int(device.partition(":")[2] or 0)
    count = cuda_device_count() if provided else 0  # the provider is listed on machines without a GPU, too
    if index < count:
        return f"cuda:{index}"
    if device == "auto":
        return "cpu"
    if not provided:
        raise BackendError(f"device {device}: this onnxruntime is built for the CPU; install onnxruntime-gpu instead")
    raise BackendError(f"device {device}: CUDA finds {count} devices here; use cpu, or check nvidia-smi")


def cuda_device_count() -> int:
    """How many CUDA devices the driver offers; 0 without a driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def _cannot_load(path: str | Path, device: str, error: Exception) -> BackendError:
    return BackendError(f"{path}: ONNX Runtime {onnxruntime.__version__} cannot load it on {device}: {_line(error)}")


def _out_of_memory(error: Exception) -> bool:
    """ONNX Runtime has no error of its own for it; the arena's, CUDA's and cuBLAS's words tell."""
    text = str(error)
    return any(words in text for words in ("Failed to allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED"))


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:297]}..."
