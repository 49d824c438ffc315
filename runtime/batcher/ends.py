"""The end of batchers that nobody closed: with the interpreter, and in a fork of their process."""

from __future__ import annotations

import atexit
import os
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.batcher.batcher import Batcher

FORKED = (
    "the batcher was made in another process, of which this one is a fork: its threads are not here; make the Detector "
    "and its batcher after the fork, or start processes by spawn"
)


open_batchers: weakref.WeakSet[Batcher] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """No thread may be inside an engine while the interpreter ends."""
    for batcher in list(open_batchers):
        batcher.close(drain=False, timeout=5.0)


def _leave_all() -> None:
    """In a fork, close all batchers without touching them: their threads, which may hold locks, are not there."""
    for batcher in list(open_batchers):
        batcher.closed = FORKED
    open_batchers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all)
