"""Importing ONNX Runtime, and what to install where it is missing or the wrong build.

It comes in two builds (distributions) with one Python module. isodet itself requires neither, since pip cannot express
"either".
"""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from isodet.telemetry import silence
from runtime.backends.protocol import BackendError

BUILDS = ("onnxruntime", "onnxruntime-gpu")
"""The distributions; the extras `cpu` and `gpu` bring one each."""
_INSTALL = "pip install 'isodet[cpu]' or, for an NVIDIA GPU, pip install 'isodet[gpu]'"


def load_onnxruntime() -> Any:
    """The module `onnxruntime`. Raises `BackendError` that says which builds to install.

    Its telemetry is off, unless `ORT_DISABLE_TELEMETRY=0` is set. Where the application imported it before `runtime`,
    telemetry has started by then, and can only be limited to the events that ONNX Runtime considers essential.
    """
    silence()
    imported_before = "onnxruntime" in sys.modules
    try:
        module = importlib.import_module("onnxruntime")
        _ = module.InferenceSession  # a folder that an uninstallation left behind can be imported, too
    except (ImportError, AttributeError) as error:
        builds = installed_builds()
        if builds:
            reason = _clash(builds) or f"{builds[0]} is installed and does not load"
            advice = f"{reason}: {_remove(builds)} && {_INSTALL}"
        else:
            advice = f"it is not installed: {_INSTALL}"
        raise BackendError(f"an ONNX file needs ONNX Runtime; {advice} ({' '.join(str(error).split())})") from error
    if imported_before and os.environ["ORT_DISABLE_TELEMETRY"] != "0" and hasattr(module, "disable_telemetry_events"):
        module.disable_telemetry_events()
    return module


def no_cuda_provider() -> str:
    """Why the installed onnxruntime runs on no GPU, and how to get the build that does."""
    builds = installed_builds()
    reason = _clash(builds) or "this onnxruntime is built for the CPU"
    return f"{reason}: {_remove(builds or BUILDS[:1])} && pip install 'isodet[gpu]'"


def installed_builds() -> tuple[str, ...]:
    """Those of `BUILDS` that are installed here, by pip's own records."""
    builds = []
    for name in BUILDS:
        with suppress(PackageNotFoundError):
            version(name)
            builds.append(name)
    return tuple(builds)


def _clash(builds: tuple[str, ...]) -> str:
    """The trouble with two builds: they overwrite each other's files, and removing one breaks both. "" for one."""
    return f"{' and '.join(builds)} are both installed and overwrite each other" if len(builds) > 1 else ""


def _remove(builds: tuple[str, ...]) -> str:
    return f"pip uninstall -y {' '.join(builds)}"
