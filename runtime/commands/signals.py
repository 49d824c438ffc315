"""How a program is asked to end: Ctrl-C, SIGTERM (docker stop, systemd, timeout), SIGHUP (a terminal that closes)."""

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
    """SIGTERM or SIGHUP, raised as Ctrl-C is, so that what is half written goes."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.status = 128 + number
        """The exit status, as a shell gives it to a process that the signal ended."""


@contextmanager
def terminating() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Terminated` within, where they have their usual meaning; a second one ends at once."""
    process = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != process:  # a forked worker, which has nothing to tidy up
            os.kill(os.getpid(), number)
            return
        raise Terminated(number)

    with _handling({number: end for number in _TERMINATING if signal.getsignal(number) is signal.SIG_DFL}):
        yield


@contextmanager
def finishing(stop: Callable[[], None]) -> Iterator[threading.Event]:
    """Ctrl-C, SIGTERM and SIGHUP call `stop` and set the event, so that what is in hand is finished; a second one
    interrupts.

    Each only where it has its usual meaning: in the main thread, and where the application has no handler of its own.
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
    """These handlers within, in the main thread; no other thread may set any."""
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
