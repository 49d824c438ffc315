"""The backend for a model file, chosen by its content."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

from runtime.backends.device import parse_device
from runtime.backends.options import DEFAULT, BackendOptions
from runtime.backends.protocol import Backend, BackendError
from runtime.card.card import file_kind

_log = logging.getLogger(__name__)


def load_backend(
    path: str | Path, device: str = "auto", threads: int | None = None, options: BackendOptions | None = None
) -> Backend:
    """The backend for the model file at `path`, chosen by its content and not by its name.

    `device`: auto, cpu, cuda or cuda:N, in OpenVINO also gpu, gpu:N and npu (`runtime.backends.openvino.devices`); for
    auto, the choice and its reason are logged (INFO). `threads`: CPU threads
    of the engine, None for its own choice. `options`: see `runtime.backends.options.BackendOptions`.
    Raises `CardError` for a file that is not a model of ours, `BackendError` when it cannot run here.
    """
    options = options or DEFAULT
    kind = file_kind(path)
    openvino = kind == "onnx" and _runs_in_openvino(options)
    if not openvino:
        parse_device(device)
    if threads is not None and threads < 1:
        raise BackendError.of("threads", f"expected at least 1, got {threads}")
    backend: Backend
    if openvino:
        from runtime.backends.openvino.backend import OpenVinoBackend

        backend = OpenVinoBackend(path, device, threads, options)
    elif kind == "onnx":
        from runtime.backends.ort.backend import OrtBackend

        backend = OrtBackend(path, device, threads, options)
    elif kind == "engine":
        from runtime.backends.trt.backend import TrtBackend

        backend = TrtBackend(path, device, options)
    else:
        from runtime.backends.torch.backend import TorchBackend

        backend = TorchBackend.load(path, device, threads, options)
    if device == "auto":
        _log.info("%s: %s", path, backend.runs_on)
    return backend


def _runs_in_openvino(options: BackendOptions) -> bool:
    """Whether it was asked for, or is the only one that is installed."""
    if options.engine != "auto":
        return options.engine == "openvino"
    no_onnxruntime = find_spec("onnxruntime") is None and options.provider == "cuda" and not options.cuda_graphs
    return no_onnxruntime and find_spec("openvino") is not None
