"""How batchers end that nobody closed: with the interpreter, and in a process that was forked from theirs."""

from __future__ import annotations

import atexit
import os
import weakref
from typing import Protocol

FORKED = (
    "the batcher was made in another process, of which this one is a fork: its threads are not here; make the Detector "
    "and its batcher after the fork, or start processes by spawn"
)


class Ends(Protocol):
    """A batcher, as far as its end goes."""

    closed: str

    def close(self, drain: bool = True, timeout: float | None = None) -> None: ...


open_batchers: weakref.WeakSet[Ends] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """The threads must not be inside an engine while the interpreter is taken down."""
    for batcher in list(open_batchers):
        batcher.close(drain=False, timeout=5.0)


def _leave_all() -> None:
    """In the child of a fork: nobody would answer, and a lock may be held for ever by a thread that is not here."""
    for batcher in list(open_batchers):
        batcher.closed = FORKED
    open_batchers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all)
