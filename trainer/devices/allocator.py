"""Memory that a step frees is kept for the next one.

glibc gives freed blocks of more than 32 MiB back to the system, and what is free at the end of the heap. A training
step on a CPU takes and frees gigabytes, and the system clears each page before it hands it out again.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # malloc.h
_NEVER, _PAD = -1, 64 << 20
_AS_BEFORE = ((_MMAP_MAX, 65536), (_TRIM_THRESHOLD, 64 << 20), (_TOP_PAD, 128 << 10), (_MMAP_THRESHOLD, 32 << 20))
"""glibc's thresholds grow with the blocks that are freed, until something sets them; these are the largest."""


@contextmanager
def freed_memory_kept(wanted: bool) -> Iterator[None]:
    """Within it, if `wanted`, the process keeps the memory that it frees. Without glibc it does nothing.

    Afterwards it frees as a process does that has freed large blocks before, and gives back what is free.
    """
    libc = ctypes.CDLL(None) if wanted else None
    if libc is None or not hasattr(libc, "gnu_get_libc_version"):
        yield
        return
    for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _PAD)):
        libc.mallopt(option, value)
    try:
        yield
    finally:
        for option, value in _AS_BEFORE:
            libc.mallopt(option, value)
        libc.malloc_trim(0)
