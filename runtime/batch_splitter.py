"""Batches that fit a device's memory."""

from __future__ import annotations

import logging
import os
import sys

from runtime.backends.protocol import Backend, BackendError, Images, OutOfMemory, RawOutputs, joined

_log = logging.getLogger(__name__)


class BatchSplitter:
    """Runs a backend on batches of any size: in parts, once a batch was too large for the memory of the device."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._fits = sys.maxsize
        self._process = os.getpid()

    def run(self, images: Images, context: Backend | None = None) -> RawOutputs:
        """The outputs of the backend, or of another `context` of it, for `images`.

        Where memory runs out, the batch is halved until it runs, and later batches start at that size; a warning says
        so. Raises `OutOfMemory` where one image does not fit, or the graph's batch is fixed; `BackendError` in a fork
        of the process that loaded the model onto a GPU.
        """
        if os.getpid() != self._process and self._backend.device != "cpu":
            raise BackendError(
                f"the model was loaded onto {self._backend.device} in another process, of which this one is a fork, "
                "and CUDA does not work in forks: make the Detector after the fork, or start processes by spawn"
            )
        backend = context or self._backend
        size = min(max(1, len(images)), self._fits)
        while True:
            starts = range(0, max(1, len(images)), size)
            try:
                parts = [backend(images[start : start + size]) for start in starts]
                break
            except OutOfMemory:
                if size == 1 or self._backend.fixed_batch is not None:
                    raise
                size = (size + 1) // 2
        if size < min(len(images), self._fits):
            self._fits = size
            _log.warning(
                "%s has no memory for a batch of %d: batches of %d from now on; a smaller max_batch avoids the attempt",
                self._backend.device,
                len(images),
                size,
            )
        return parts[0] if len(parts) == 1 else joined(parts)
