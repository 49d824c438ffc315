"""The device that the network computes on, and the precision."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from isodet.strict import ConfigError
from runtime.backends.device import parse_device
from runtime.backends.protocol import BackendError


def pick_device(name: str) -> torch.device:
    """The torch device for `auto`, `cpu`, `cuda` or `cuda:N`. Raises `ConfigError` for one that is not there."""
    try:
        kind, index = parse_device(name)
    except BackendError as error:
        raise ConfigError(str(error)) from None
    if kind == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: {name!r} was asked for, but torch sees no GPU here; use device=auto or cpu")
    if kind == "cuda" and index >= torch.cuda.device_count():
        raise ConfigError(f"device: {name!r} was asked for, but there are {torch.cuda.device_count()} GPUs")
    return torch.device(name)


def pick_amp(kind: Literal["auto", "bf16", "fp16", "off"], device: torch.device) -> torch.dtype | None:
    """The autocast dtype, or None for float32. `auto` takes bfloat16 only where the hardware computes in it."""
    if kind == "fp16" and device.type == "cpu":
        raise ConfigError("amp: fp16 training needs a GPU (its gradients underflow on a CPU); use auto or bf16")
    if kind != "auto":
        return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[kind]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    # torch has no public question for this; emulated bfloat16 is slower than float32.
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return torch.bfloat16 if native is not None and native() else None


def worker_count(workers: int | Literal["auto"], device: torch.device) -> int:
    """Loader processes: none beside training on a CPU, where they would take its cores; else up to 8."""
    if workers != "auto":
        return workers
    return 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within it, if `wanted`, torch uses only algorithms that repeat their results. It raises where it has none."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it, and reads it when it starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
