"""Which process trains in a run folder. It holds a lock, which the system releases however the process ends."""

from __future__ import annotations

import errno
import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from isodet.strict import ConfigError

_LOCKED = "config.yaml"
"""The file that is locked: every run has it from the start, and nothing replaces it."""
_PATIENCE_S = 10.0
"""Loader processes hold the lock of a killed trainer until they notice, seconds later."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EROFS}
"""The errors of file systems without locks. A run on one is never seen as running."""


@contextmanager
def training_in(run: Path) -> Iterator[None]:
    """Hold `run` as the one process that trains in it. Raises `ConfigError` where another one does."""
    with (run / _LOCKED).open("r+") as file:
        end = time.monotonic() + _PATIENCE_S
        while not _locked(file, fcntl.LOCK_EX):
            if time.monotonic() >= end:
                raise ConfigError(f"{run}: another process is training in it; wait for it, stop it, or start a new run")
            time.sleep(0.1)
        yield


def is_training(run: Path) -> bool:
    """Whether some process trains in `run` now."""
    try:
        file = (run / _LOCKED).open()
    except OSError:  # no run, or not ours to read
        return False
    with file:
        return not _locked(file, fcntl.LOCK_SH)


def _locked(file: IO[str], kind: int) -> bool:
    """Whether the lock was free, and is ours until `file` is closed."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True
