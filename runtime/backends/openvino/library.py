"""Importing OpenVINO, and what to install where it is missing or too old."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from runtime.backends.protocol import BackendError

OLDEST = (2025, 0)
"""The first release that isodet is tested with; pyproject.toml says the same."""
_INSTALL = "pip install 'isodet[openvino]'"


def load_openvino() -> Any:
    """The module `openvino`. Raises `BackendError` that says what to install.

    Reading, compiling and running a model send nothing: openvino's usage data is that of its converter, which isodet
    does not call.
    """
    try:
        module = importlib.import_module("openvino")
        importlib.import_module("openvino.frontend.onnx")
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise BackendError(f"engine openvino: it is not installed, or not whole: {_INSTALL} ({reason})") from error
    if _release() < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise BackendError(f"engine openvino: expected version {oldest} or later, got {openvino_version()}: {_INSTALL}")
    return module


def openvino_version() -> str:
    """The version of OpenVINO that pip's records have: 2026.4.1."""
    try:
        return version("openvino")
    except PackageNotFoundError:  # not installed by pip: an archive of Intel's, on the path
        from openvino import get_version

        return str(get_version()).partition("-")[0]


def _release() -> tuple[int, ...]:
    return tuple(int(part) for part in openvino_version().split(".")[:2] if part.isdigit())
