"""SIGINT and SIGTERM as a request to stop, which the loop follows at the end of a step."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class StopRequest:
    """Within `with`, the first SIGINT or SIGTERM is noted in `signal`; the second leaves at once.

    Signals can only be taken over in the main thread; in another one they keep their meaning.
    """

    def __init__(self) -> None:
        self.signal = ""
        """Name of the signal that asked to stop; '' before one came."""
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._asked)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name
