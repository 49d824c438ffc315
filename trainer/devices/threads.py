"""How many CPU threads a training computes with: measured at its start, and again when other programs come or go.

The threads of one operation wait for each other without giving up their core. So where another program keeps a core
busy, two threads can be several times slower than one.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

TRIAL_STEPS = 3
"""Steps that are timed with each number of threads, after one in which the threads start."""
WINDOW_S = 60.0
"""So long the speed is watched before anything is said of it."""
PATIENCE_S = 300.0
"""So long after a trial no other one is made only because a core seems to be free."""
_HOPELESS = 2.0
"""A number of threads whose first step takes so many times the best one's is not tried further."""


@dataclass(frozen=True)
class Machine:
    """What `Threads` reads and sets; a test has its own.

    clock: seconds. load: processes that want a core, the mean of the last minute. use: set the number of threads.
    """

    clock: Callable[[], float] = time.perf_counter
    load: Callable[[], float] = lambda: os.getloadavg()[0]
    use: Callable[[int], None] = lambda threads: torch.set_num_threads(threads)


class Threads:
    """Tries numbers of threads in the first steps, takes the fastest, and tries again where the speed falls by half.

    Call `after_step` after each optimizer step, and `pause` before work that is no step. Where fewer threads than cores
    are used, and a core has become free, it tries again as well. Another number of threads rounds sums in another
    order: the weights are no longer those of another run, bit for bit.
    """

    def __init__(self, most: int, say: Callable[[str], None], chosen: int = 0, machine: Machine | None = None) -> None:
        """most: all cores. chosen: the number to start with, 0 to try them."""
        self.candidates = tuple(dict.fromkeys((most, max(1, most // 2), max(1, most // 4), 1)))
        self.chosen = min(chosen, most)
        self._say, self._machine = say, machine or Machine()
        self._waiting: list[int] = []
        self._times: dict[int, list[float]] = {}
        self._last: float | None = None
        self._best = float("inf")
        self._tried = self._window = self._machine.clock()
        self._steps = 0
        if self.chosen:
            self._machine.use(self.chosen)
        else:
            self._try()

    def pause(self) -> None:
        """The time until the next step is not that of a step."""
        self._last = None

    def after_step(self) -> None:
        """A step has ended."""
        now = self._machine.clock()
        if self._last is None:
            self._last = self._window = now
            self._steps = 0
            return
        seconds, self._last = now - self._last, now
        if self._times:
            self._after_trial_step(seconds)
        else:
            self._watch(now)

    def _try(self) -> None:
        self._waiting, self._times = list(self.candidates), {}
        self._next()

    def _next(self) -> None:
        threads = self._waiting.pop(0)
        self._times[threads] = []
        self._machine.use(threads)

    def _after_trial_step(self, seconds: float) -> None:
        threads = next(reversed(self._times))
        times = self._times[threads]
        times.append(seconds)
        others = [_typical(t) for number, t in self._times.items() if number != threads]
        if len(times) <= TRIAL_STEPS and not (others and seconds > _HOPELESS * min(others)):
            return
        if self._waiting:
            self._next()
        else:
            self._take()

    def _take(self) -> None:
        """The fastest; of equal ones the most threads, which were tried first."""
        seconds = {threads: _typical(times) for threads, times in self._times.items()}
        self.chosen = min(seconds, key=lambda threads: seconds[threads])
        self._best = seconds[self.chosen]
        self._times = {}
        self._tried = self._window = self._machine.clock()
        self._steps = 0
        self._machine.use(self.chosen)
        if len(seconds) > 1:
            tried = ", ".join(f"{threads}: {1000 * s:.0f} ms" for threads, s in seconds.items())
            self._say(f"{self.chosen} of {self.candidates[0]} CPU threads, the fastest in the trial ({tried} a step)")

    def _watch(self, now: float) -> None:
        self._steps += 1
        if now - self._window < WINDOW_S:
            return
        seconds = (now - self._window) / self._steps
        self._window, self._steps = now, 0
        if seconds > 2 * self._best:
            share = self._best / seconds
            self._say(f"steps fell to {share:.0%} of their best speed: numbers of threads are tried again")
            self._try()
        elif self.chosen < self.candidates[0] and now - self._tried > PATIENCE_S and self._free() >= 1:
            self._say("a core has become free: numbers of threads are tried again")
            self._try()
        else:
            self._best = min(self._best, seconds)

    def _free(self) -> float:
        """Cores that nobody wants."""
        others = max(0.0, self._machine.load() - self.chosen)
        return self.candidates[0] - self.chosen - round(others)


def _typical(times: list[float]) -> float:
    """The median step, without the one in which the threads start where there are others."""
    return statistics.median(times[1:] or times)


def training_threads(
    wanted: int | Literal["auto"],
    device: torch.device,
    repeatable: bool,
    processes: int,
    chosen: int,
    say: Callable[[str], None],
) -> Threads | None:
    """What measures the threads of a training; None where there is nothing to choose.

    That is on a GPU, with one core, with `OMP_NUM_THREADS` set, in several processes, and where the training is to be
    `repeatable`. A number that is `wanted` is set. chosen: by this run before it was interrupted; 0 for a new one.
    """
    if wanted != "auto":
        torch.set_num_threads(wanted)
        return None
    most = torch.get_num_threads()
    fixed = repeatable or processes > 1 or bool(os.environ.get("OMP_NUM_THREADS"))
    if device.type != "cpu" or most < 2 or fixed:
        return None
    return Threads(most, say, chosen)
