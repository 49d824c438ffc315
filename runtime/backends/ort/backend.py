"""ONNX Runtime."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends.cuda.devices import cuda_device_count
from runtime.backends.device import parse_device
from runtime.backends.options import DEFAULT, BackendOptions
from runtime.backends.ort.library import load_onnxruntime, no_cuda_provider
from runtime.backends.protocol import (
    Backend,
    BackendError,
    Images,
    OutOfMemory,
    RawOutputs,
    TimedCall,
    graph_input,
    output_names,
    raw_outputs,
)
from runtime.card.card import CardError
from runtime.card.onnx_metadata import read_onnx_card, require_unedited

if TYPE_CHECKING:
    from runtime.backends.ort.cuda import BoundSession

onnxruntime = load_onnxruntime()
_log = logging.getLogger(__name__)

_TYPES = {
    "num_dets": "tensor(int32)", "boxes": "tensor(float)", "scores": "tensor(float)", "labels": "tensor(int32)",
    "nms_exact": "tensor(bool)",
}  # fmt: skip


class OrtBackend(Backend):
    """An ONNX file on the CPU, or on a CUDA device when there is one. See `runtime.backends.protocol.Backend`."""

    def __init__(
        self, path: str | Path, device: str = "auto", threads: int | None = None, options: BackendOptions = DEFAULT
    ) -> None:
        parse_device(device)
        options.check("onnx", path)
        self._path, self.card = path, read_onnx_card(path, options.check_hashes)
        if self.card.nms["kind"] == "plugin":
            raise BackendError.at(
                path,
                "its NMS is TensorRT's plugin EfficientNMS_TRT, which ONNX Runtime has not; build an engine "
                "of it, or export with --nms auto, whose one file runs in both",
            )
        if options.check_hashes:
            require_unedited(path, self.card)
        self.name = f"ONNX Runtime {onnxruntime.__version__}"
        self.device, self.why = _resolve(device, options)
        asked_for = options.cuda_graphs or options.provider != "cuda"  # what there is on a GPU only
        if asked_for and self.device == "cpu":
            raise BackendError.at(path, f"{options} needs a GPU; device {device} is the CPU here ({self.why})")
        session_options = onnxruntime.SessionOptions()
        session_options.log_severity_level = 3  # errors; they are raised, too
        if threads is not None:
            session_options.intra_op_num_threads = threads
        try:
            self._session = self._open(path, session_options, options)
        except Exception as error:  # onnxruntime's errors have no common base but Exception
            if self.device == "cpu":
                raise _cannot_load(path, self.device, error) from None
            if device != "auto" or asked_for:
                raise BackendError.at(path, f"cannot run on {self.device}: {_line(error)}") from None
            _log.warning("%s: cannot run on %s, so it runs on the CPU: %s", path, self.device, _line(error))
            self.device, self.why = "cpu", f"it cannot run on {self.device}: {_line(error)}"
            try:
                self._session = self._open(path, session_options, options)
            except Exception as second:
                raise _cannot_load(path, self.device, second) from None
        self.fixed_batch = self._check_graph(path)
        self.max_batch = self.fixed_batch or self._most()
        self._bound = self._bind(options) if self.device != "cpu" else None

    def _most(self) -> int:
        return 16 if self.device == "cpu" else 32

    def _open(self, path: str | Path, session_options: Any, options: BackendOptions) -> Any:
        if self.device == "cpu":
            return onnxruntime.InferenceSession(str(path), session_options, providers=["CPUExecutionProvider"])
        from runtime.backends.ort.providers import cuda_provider, engine_folder, rtx_settings, tensorrt_provider

        _, index = parse_device(self.device)
        if options.provider == "rtx":
            from runtime.backends.ort.rtx import open_session, plugin

            version = f"{onnxruntime.__version__}-rtx-{plugin().__version__}"
            folder = engine_folder(path, self.card, options, self._most(), version)
            settings = rtx_settings(self.card, "images", self._most(), folder, options.cuda_graphs)
            return open_session(path, session_options, index, settings)
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # CUDA libraries that pip installed
        providers: list[Any] = [cuda_provider(index, self.card.batch, options.cuda_graphs), "CPUExecutionProvider"]
        if options.provider == "tensorrt":
            folder = engine_folder(path, self.card, options, self._most(), onnxruntime.__version__)
            providers.insert(0, tensorrt_provider(index, self.card, "images", self._most(), folder))
        # ONNX Runtime would print a line and go on with the CPU where a provider fails, at the start or in any run.
        session = onnxruntime.InferenceSession(str(path), session_options, providers=providers, enable_fallback=0)
        session.disable_fallback()
        # A provider that fails to load is left out with no more than a log line.
        wanted = providers[0][0]
        if wanted not in session.get_providers():
            raise BackendError(f"onnxruntime's {wanted} did not load (its CUDA, cuDNN or TensorRT libraries missing?)")
        return session

    def _bind(self, options: BackendOptions) -> BoundSession | None:
        """Buffers on the GPU; None where they cannot be had, and every run copies as it goes."""
        try:
            from runtime.backends.ort.cuda import BoundSession

            _, index = parse_device(self.device)
            graph_id = "cuda_graph_annotation_id" if options.provider == "rtx" else "gpu_graph_id"
            return BoundSession(self._session, self.card, index, self.fixed_batch, options.cuda_graphs, graph_id)
        except BackendError as error:
            if options.cuda_graphs:
                raise BackendError.of("cuda_graphs", str(error)) from None
            _log.info("frames are copied through ordinary memory: %s", error)
            return None

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
            raise CardError.at(path, f"expected one input, {written}, as its card says; got {got}")
        expected = {name: _TYPES[name] for name in output_names(self.card)}
        if {o.name: o.type for o in outputs} != expected:
            got = ", ".join(f"{o.name} {o.type}" for o in outputs)
            wanted = ", ".join(f"{name} {kind}" for name, kind in expected.items())
            raise CardError.at(path, f"expected the outputs {wanted}; got {got}")
        self._input = inputs[0].name
        batch = inputs[0].shape[0]
        fixed = batch if isinstance(batch, int) else None
        if (fixed or "dynamic") != self.card.batch:
            raise CardError.at(path, f"{self.card.batch!r}, but the graph takes {fixed or 'any batch'}", key="batch")
        return fixed

    def __call__(self, images: Images) -> RawOutputs:
        try:
            if self._bound is not None:
                return self._bound(images)
            assert isinstance(images, np.ndarray), "it takes no frames on a device"
            feed = {self._input: graph_input(self.card, images)}
            return raw_outputs(self.card, self._session.run(list(output_names(self.card)), feed))
        except BackendError:
            raise
        except Exception as error:
            message = f"{self._path}: {self.name} failed on a batch of {len(images)}: {_line(error)}"
            raise (OutOfMemory if _out_of_memory(error) else BackendError)(message) from error

    @property
    def takes_device_frames(self) -> bool:
        return self._bound is not None

    @property
    def timed(self) -> TimedCall | None:
        return None if self._bound is None else self._bound.timed

    def host_memory(self, size: int) -> NDArray[np.uint8]:
        return super().host_memory(size) if self._bound is None else self._bound.host_memory(size)

    def context(self) -> OrtBackend:
        """The same session, which may be called from several threads; on a GPU with buffers of its own."""
        if self._bound is None:
            return self
        other = copy.copy(self)
        other._bound = self._bound.another()
        return other


def _resolve(device: str, options: BackendOptions) -> tuple[str, str]:
    """'cpu' or 'cuda:N', and why. Raises `BackendError` when CUDA is asked for and not there."""
    if device == "cpu":
        return "cpu", "as asked"
    if options.provider == "rtx":  # which an onnxruntime for the CPU loads, too
        from runtime.backends.ort.rtx import find_device

        return find_device(device)
    provided = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    _, index = parse_device(device)
    count = cuda_device_count() if provided else 0  # the provider is listed on machines without a GPU, too
    if index < count:
        return f"cuda:{index}", f"the first of {count} CUDA devices" if device == "auto" else "as asked"
    if device == "auto":
        return "cpu", "CUDA finds no device here" if provided else "this onnxruntime is built for the CPU"
    if not provided:
        raise BackendError(f"device {device}: {no_cuda_provider()}", key="device")
    raise BackendError(f"device {device}: CUDA finds {count} devices here; use cpu, or check nvidia-smi", key="device")


def _cannot_load(path: str | Path, device: str, error: Exception) -> BackendError:
    return BackendError.at(path, f"ONNX Runtime {onnxruntime.__version__} cannot load it on {device}: {_line(error)}")


def _out_of_memory(error: Exception) -> bool:
    """ONNX Runtime has no error of its own for it; the arena's, CUDA's and cuBLAS's words tell."""
    text = str(error)
    return any(words in text for words in ("Failed to allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED"))


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:297]}..."
