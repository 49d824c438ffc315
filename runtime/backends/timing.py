"""The time of a batch on a device: its copies and its work, each waited for."""

from __future__ import annotations

import time


class Stages:
    """Seconds from one stage to the next. Who asks has waited for the device."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begun = time.perf_counter()

    def lap(self, stage: str) -> None:
        """`stage` ends now."""
        now = time.perf_counter()
        self.seconds[stage], self._begun = now - self._begun, now
