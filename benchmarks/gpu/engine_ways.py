"""TensorRT-RTX asked directly, for a card that it does not list: engines for several targets, each tried in a process.

What it answers is the result, in its own words.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.bare_engine import MARK
from export.options import ExportError
from runtime.backends.trt.library import Library, Messages, collecting_logger

WAYS: Mapping[str, tuple[str, ...]] = {
    "every card since Ampere (its default)": (),
    "SM80": ("SM80",),
    "the card that is here (CURRENT)": ("CURRENT",),
    "SM89": ("SM89",),
    "SM120": ("SM120",),
}
"""Compute capabilities to build for, as the library's `ComputeCapability` names them."""


def plan_for(library: Library, onnx: Path, capabilities: tuple[str, ...], batch: tuple[int, int, int]) -> bytes:
    """An engine of the graph by nothing but the library's own calls. Raises `ExportError` with its words."""
    trt, messages = library.trt, Messages()
    logger = collecting_logger(library, messages)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        raise ExportError(f"{onnx.name}: cannot be read: {messages.why()}")
    config = builder.create_builder_config()
    images = network.get_input(0)
    profile = builder.create_optimization_profile()
    profile.set_shape(images.name, *((size, *tuple(images.shape)[1:]) for size in batch))
    config.add_optimization_profile(profile)
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
    for i, name in enumerate(capabilities):
        if not hasattr(trt.ComputeCapability, name):
            raise ExportError(f"{library.name} knows no {name}")
        if not config.set_compute_capability(getattr(trt.ComputeCapability, name), i):
            raise ExportError(f"{name} cannot be built for here: {messages.why()}")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ExportError(f"no engine: {messages.why()}")
    return bytes(plan)


def fresh(
    engine: Path, seconds: float, batch: int = 1, cache: Path | None = None, graphs: bool = False
) -> dict[str, Any]:
    """What a fresh process says that loads and runs `engine` (`benchmarks.gpu.bare_engine`), or why it said nothing.

    The driver's own cache of kernels is left out, so that every process compiles what it needs.
    """
    command = [sys.executable, "-m", "benchmarks.gpu.bare_engine", str(engine), "--batch", str(batch)]
    command += ["--cache", str(cache)] if cache is not None else []
    command += ["--graphs"] if graphs else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL,
                              timeout=seconds, env={**os.environ, "CUDA_CACHE_DISABLE": "1"})  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"refused": f"killed after {seconds:.0f} s"}
    print(done.stdout + done.stderr)
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            found: dict[str, Any] = json.loads(line.removeprefix(MARK))
            return found
    status = done.returncode
    how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
    last = done.stderr.strip().splitlines()[-1:] or ["nothing"]
    return {"refused": f"its process ended with {how}; the last it said: {last[0][:300]}"}
