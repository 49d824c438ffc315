"""ONNX Runtime comes in two builds, which own one Python module: what to install where it is missing or the wrong one.

No build is among what isodet itself requires, since pip cannot express "either".
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from isodet.telemetry import silence
from runtime.backends.protocol import BackendError

BUILDS = ("onnxruntime", "onnxruntime-gpu")
"""Distributions; the extras `cpu` and `gpu` bring one each."""
_INSTALL = "pip install 'isodet[cpu]' or, for an NVIDIA GPU, pip install 'isodet[gpu]'"


def load_onnxruntime() -> Any:
    """The module `onnxruntime`. Raises `BackendError` saying which builds there are to install.

    Its telemetry is off, unless `ORT_DISABLE_TELEMETRY=0` is set. Where the application imported it before `runtime`,
    it has started by then, and the most that can be had is that it sends nothing but what is essential to it.
    """
    silence()
    before = "onnxruntime" in sys.modules
    try:
        module = importlib.import_module("onnxruntime")
        _ = module.InferenceSession  # a folder that an uninstallation left behind can be imported, too
    except (ImportError, AttributeError) as error:
        found = installed_builds()
        if found:
            advice = f"{_clash(found) or f'{found[0]} is installed and does not load'}: {_remove(found)} && {_INSTALL}"
        else:
            advice = f"it is not installed: {_INSTALL}"
        raise BackendError(f"an ONNX file needs ONNX Runtime; {advice} ({' '.join(str(error).split())})") from error
    if before and os.environ["ORT_DISABLE_TELEMETRY"] != "0" and hasattr(module, "disable_telemetry_events"):
        module.disable_telemetry_events()
    return module


def no_cuda_provider() -> str:
    """Why the onnxruntime that is here runs on no GPU, and how to get the one that does."""
    found = installed_builds()
    reason = _clash(found) or "this onnxruntime is built for the CPU"
    return f"{reason}: {_remove(found or BUILDS[:1])} && pip install 'isodet[gpu]'"


def installed_builds() -> tuple[str, ...]:
    """Those of `BUILDS` that are installed here, by pip's own records."""
    found = []
    for name in BUILDS:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        found.append(name)
    return tuple(found)


def _clash(found: tuple[str, ...]) -> str:
    """What is wrong where both are installed: one has overwritten the other, and each takes both with it; else ""."""
    return f"{' and '.join(found)} are both installed and overwrite each other" if len(found) > 1 else ""


def _remove(found: tuple[str, ...]) -> str:
    return f"pip uninstall -y {' '.join(found)}"
