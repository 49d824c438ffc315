"""Memory that the processes of one training share, whatever size /dev/shm has."""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class SharedMemory:
    """`size` bytes that this process and those it sends the object to see alike.

    They are those of the file `path`, which has that size; without a path they are zero at first, and belong to an
    anonymous file in memory. That is not POSIX shared memory: containers give that 64 MB, exceeding it kills the
    process, and some make it read-only. Only pages that are written take memory. Where a system has no such files
    (macOS), a file in the temporary folder takes their place.
    """

    def __init__(self, size: int, path: str | None = None) -> None:
        self.size = max(1, size)
        self._owner = os.getpid()
        self._file: int | None = None
        if path is None:
            if hasattr(os, "memfd_create"):
                self._file = os.memfd_create("isodet")
                path = f"/proc/{os.getpid()}/fd/{self._file}"
            else:
                self._file, path = tempfile.mkstemp(prefix="isodet-")
            os.truncate(self._file, self.size)
        self._path = path
        self._map_file()

    def _map_file(self) -> None:
        with open(self._path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), self.size)

    def array(self, shape: int | tuple[int, ...], dtype: DTypeLike, offset: int = 0) -> NDArray[Any]:
        """The bytes from `offset` on as an array, to read and to write."""
        dtype = np.dtype(dtype)
        count = int(np.prod(shape))
        return np.frombuffer(self._map, dtype, count, offset).reshape(shape)

    def __getstate__(self) -> dict[str, Any]:
        return {"size": self.size, "_owner": self._owner, "_path": self._path, "_file": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map_file()

    def __del__(self) -> None:
        file: int | None = getattr(self, "_file", None)
        if file is None:
            return
        os.close(file)
        if self._owner == os.getpid() and not self._path.startswith("/proc/"):
            os.unlink(self._path)
