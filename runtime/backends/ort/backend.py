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
from runtime.backends.graph_check import Port, check_graph
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
    line_of,
    output_names,
    raw_outputs,
)
from runtime.card.onnx_metadata import read_onnx_card, require_unedited

if TYPE_CHECKING:
    from runtime.backends.ort.cuda import BoundSession

onnxruntime = load_onnxruntime()
_log = logging.getLogger(__name__)

TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}
_GPU_BATCH = 32
"""The largest batch on a GPU, of a graph that takes any."""


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
                "its NMS is TensorRT's plugin EfficientNMS_TRT, which ONNX Runtime has not; build an engine of it, or "
                "export with --nms auto, whose one file runs in both",
            )
        if options.check_hashes:
            require_unedited(path, self.card)
        self.name = f"ONNX Runtime {onnxruntime.__version__}"
        self.device, self.why = _resolve(device, options)
        needs_gpu = options.cuda_graphs or options.provider != "cuda"
        if needs_gpu and self.device == "cpu":
            raise BackendError.at(path, f"{options} needs a GPU; device {device} is the CPU here ({self.why})")
        session_options = onnxruntime.SessionOptions()
        session_options.log_severity_level = 3  # errors only, which are also raised
        if threads is not None:
            session_options.intra_op_num_threads = threads
        try:
            self._session = self._open(path, session_options, options)
        except Exception as error:  # onnxruntime's errors have no common base but Exception
            if self.device == "cpu":
                raise
            if device != "auto" or needs_gpu:
                raise BackendError.at(path, f"cannot run on {self.device}: {line_of(error)}") from None
            _log.warning("%s: cannot run on %s, so it runs on the CPU: %s", path, self.device, line_of(error))
            self.device, self.why = "cpu", f"it cannot run on {self.device}: {line_of(error)}"
            self._session = self._open(path, session_options, options)
        inputs, outputs = map(_port, self._session.get_inputs()), map(_port, self._session.get_outputs())
        self.fixed_batch = check_graph(path, self.card, [*inputs], [*outputs])
        self._input = self._session.get_inputs()[0].name
        self.max_batch = self.fixed_batch or (16 if self.device == "cpu" else _GPU_BATCH)
        self._bound = self._bind(options) if self.device != "cpu" else None

    def _open(self, path: str | Path, session_options: Any, options: BackendOptions) -> Any:
        """A session on `self.device`. Raises `BackendError`, and on a GPU whatever ONNX Runtime raises."""
        if self.device == "cpu":
            try:
                return onnxruntime.InferenceSession(str(path), session_options, providers=["CPUExecutionProvider"])
            except Exception as error:
                raise BackendError.at(path, f"{self.name} cannot load it on cpu: {line_of(error)}") from None
        from runtime.backends.ort.providers import cuda_provider, engine_folder, rtx_settings, tensorrt_provider

        _, index = parse_device(self.device)
        if options.provider == "rtx":
            from runtime.backends.ort.rtx import open_session, plugin

            version = f"{onnxruntime.__version__}-rtx-{plugin().__version__}"
            folder = engine_folder(path, self.card, options, _GPU_BATCH, version)
            settings = rtx_settings(self.card, "images", _GPU_BATCH, folder, options.cuda_graphs)
            return open_session(path, session_options, index, settings)
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # CUDA libraries that pip installed
        providers: list[Any] = [cuda_provider(index, self.card.batch, options.cuda_graphs), "CPUExecutionProvider"]
        if options.provider == "tensorrt":
            folder = engine_folder(path, self.card, options, _GPU_BATCH, onnxruntime.__version__)
            providers.insert(0, tensorrt_provider(index, self.card, "images", _GPU_BATCH, folder))
        # No fallback: where a provider fails, ONNX Runtime would print a line and go on with the CPU.
        session = onnxruntime.InferenceSession(str(path), session_options, providers=providers, enable_fallback=0)
        session.disable_fallback()
        # ONNX Runtime leaves out a provider that fails to load, and only logs it.
        first = providers[0][0]
        if first not in session.get_providers():
            raise BackendError(f"onnxruntime's {first} did not load (its CUDA, cuDNN or TensorRT libraries missing?)")
        return session

    def _bind(self, options: BackendOptions) -> BoundSession | None:
        """Buffers on the GPU; None where there can be none, and ONNX Runtime copies in every run."""
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
            message = f"{self._path}: {self.name} failed on a batch of {len(images)}: {line_of(error)}"
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
        """The same session, which several threads may call; on a GPU with buffers of its own."""
        if self._bound is None:
            return self
        context = copy.copy(self)
        context._bound = self._bound.another()
        return context


def _port(node: Any) -> Port:
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    return Port(node.name, np.dtype(TYPES[node.type]).name if node.type in TYPES else node.type, shape)


def _resolve(device: str, options: BackendOptions) -> tuple[str, str]:
    """'cpu' or 'cuda:N', and why. Raises `BackendError` for a CUDA device that is not here."""
    if device == "cpu":
        return "cpu", "as asked"
    if options.provider == "rtx":  # also an onnxruntime for the CPU loads it
        from runtime.backends.ort.rtx import find_device

        return find_device(device)
    provided = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    _, index = parse_device(device)
    count = cuda_device_count() if provided else 0  # the provider is also listed on machines without a GPU
    if index < count:
        return f"cuda:{index}", f"the first of {count} CUDA devices" if device == "auto" else "as asked"
    if device == "auto":
        return "cpu", "CUDA finds no device here" if provided else "this onnxruntime is built for the CPU"
    if not provided:
        raise BackendError(f"device {device}: {no_cuda_provider()}", key="device")
    raise BackendError(f"device {device}: CUDA finds {count} devices here; use cpu, or check nvidia-smi", key="device")


def _out_of_memory(error: Exception) -> bool:
    """By the words of its arena, CUDA or cuBLAS: ONNX Runtime has no exception of its own for it."""
    text = str(error)
    return any(words in text for words in ("Failed to allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED"))
