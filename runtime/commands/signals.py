"""Signals that ask a program to end: Ctrl-C, SIGTERM (docker stop, systemd, timeout), SIGHUP (a closed terminal)."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_TERMINATING = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, raised as Ctrl-C is, so that half-written files are deleted."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.status = 128 + number
        """The exit status that a shell reports for a process that the signal ended."""


@contextmanager
def terminating() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP raise `Terminated`, unless the application handles them; a second one ends at once."""
    process = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != process:  # a forked worker, which has nothing to clean up
            os.kill(os.getpid(), number)
            return
        raise Terminated(number)

    with _handling({number: end for number in _TERMINATING if signal.getsignal(number) is signal.SIG_DFL}):
        yield


@contextmanager
def finishing(stop: Callable[[], None]) -> Iterator[threading.Event]:
    """Within, Ctrl-C, SIGTERM and SIGHUP call `stop` and set the event, to finish the work; a second one interrupts.

    This is so in the main thread only, and for each signal only where the application has no handler of its own.
    """
    stopped = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)
        stopped.set()
        stop()

    usual = [number for number in (signal.SIGINT, *_TERMINATING) if _is_usual(number)]
    with _handling({number: ask for number in usual}):
        yield stopped


def _is_usual(number: int) -> bool:
    handler: Any = signal.getsignal(number)
    ours = getattr(handler, "__module__", None) == __name__
    return ours or handler in (signal.SIG_DFL, signal.default_int_handler)


@contextmanager
def _handling(handlers: dict[signal.Signals, Callable[[int, FrameType | None], None]]) -> Iterator[None]:
    """Within, set these handlers; in the main thread only, as no other thread may."""
    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number, handler in handlers.items() if in_main}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
