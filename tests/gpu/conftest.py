"""Tests on a real GPU. They need PyTorch with CUDA, cuda-python, OpenCV and pytest; CuPy's are skipped without it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA device here")


@pytest.fixture(autouse=True)
def _float32_is_float32() -> Iterator[None]:
    """TF32 has ten bits: results would differ from the CPU's, and from one size of batch to another."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def cuda() -> Any:
    """`runtime.backends.cuda.memory` on the real driver."""
    return importlib.import_module("runtime.backends.cuda.memory")


@pytest.fixture
def memory_limit() -> Iterator[Any]:
    """`limit(bytes)`: PyTorch gets no more of the GPU than that, until the test ends."""
    total = torch.cuda.mem_get_info(0)[1]

    def limit(size: int) -> None:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(size / total, 0)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0, 0)
    torch.cuda.empty_cache()
