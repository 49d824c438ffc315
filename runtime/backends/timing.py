"""The time of a batch on a device: its copies and its work, each waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from runtime.backends import RawOutputs

TimedCall = Callable[[Any], tuple[RawOutputs, dict[str, float]]]
"""Images to outputs, and the seconds of "host to device", "engine" and "device to host". A backend on a GPU has one as
`timed`. A call that is not timed waits once, at its end, so that these are its parts and not its speed."""


class Stages:
    """Seconds from one stage to the next. Who asks has waited for the device."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begun = time.perf_counter()

    def lap(self, stage: str) -> None:
        """`stage` ends now."""
        now = time.perf_counter()
        self.seconds[stage], self._begun = now - self._begun, now
