"""The CUDA devices of this machine, by NVIDIA's driver. Works without an engine library and without cuda-python."""

from __future__ import annotations

import ctypes
import sys


def cuda_device_count() -> int:
    """The number of CUDA devices; 0 without a driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
