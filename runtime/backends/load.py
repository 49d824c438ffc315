"""The backend for a model file, chosen by its content."""

from __future__ import annotations

import logging
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

    `device`: auto, cpu, cuda or cuda:N; for auto, the choice and its reason are logged (INFO). `threads`: CPU threads
    of the engine, None for its own choice. `options`: see `runtime.backends.options.BackendOptions`.
    Raises `CardError` for a file that is not a model of ours, `BackendError` when it cannot run here.
    """
    parse_device(device)
    if threads is not None and threads < 1:
        raise BackendError.of("threads", f"expected at least 1, got {threads}")
    options = options or DEFAULT
    kind = file_kind(path)
    backend: Backend
    if kind == "onnx":
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
