"""Who is taken into a batch, who waits for it, and who is turned away. No threads here, and no clock.

Its owner's lock is held around every call.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from typing import Literal, get_args

from isodet.errors import ArgumentError, IsodetError
from runtime.batcher.metrics import Tally
from runtime.batcher.queue import FairQueue, Request

Policy = Literal["block", "drop_oldest", "refuse"]
"""What a full queue does with one more frame: `submit` waits for a place; the frame that has waited longest, of the
stream that has most waiting, is given up for it; `submit` raises `QueueFull`."""


class BatcherError(IsodetError, RuntimeError):
    """A frame that was not run."""


class FrameDropped(BatcherError):
    """Given up for a newer frame, because the queue was full (policy drop_oldest)."""


class DeadlineExpired(BatcherError):
    """The deadline passed before the frame's batch started."""


class QueueFull(BatcherError):
    """The queue was full (policy refuse), or a callback of a future asked for a place in it."""


class BatcherClosed(BatcherError):
    """The batcher closed before the frame ran, or was closed already."""


class Admission:
    """The queue of a batcher, and the line before it where its policy is `block`. Both are fair over streams."""

    def __init__(self, queue: int, policy: Policy, tally: Tally) -> None:
        if queue < 1:
            raise ArgumentError.of("queue", f"expected at least 1, got {queue}")
        if policy not in get_args(Policy):
            raise ArgumentError.of("policy", f"expected {', '.join(get_args(Policy))}, got {policy!r}")
        self.queue, self.policy, self.tally = queue, policy, tally
        self.waiting, self.blocked = FairQueue(), FairQueue()
        self.turned_away: deque[tuple[Request, BatcherError]] = deque()
        """Requests that will not run, for whoever answers them; they can be cancelled no longer."""

    def offer(self, request: Request, may_wait: bool = True) -> Future[None] | None:
        """Take `request` in; where it has to wait for a place in the queue, a future of that.

        Raises `QueueFull` where the policy refuses, or blocks and the caller is one who must not wait.
        """
        full = len(self.waiting) >= self.queue
        self.tally.submitted += 1
        if full and (self.policy == "refuse" or (self.policy == "block" and not may_wait)):
            self.tally.refused += 1
            why = "" if self.policy == "refuse" else "; a callback of a future must not wait for a place"
            raise QueueFull(f"{self.queue} frames wait already{why}")
        if full and self.policy == "block":
            request.admitted = Future()
            self.blocked.push(request)
            return request.admitted
        self.waiting.push(request)
        if full:
            error = FrameDropped(f"given up for a newer frame: {self.queue} frames wait already")
            self.tally.dropped += self._turn_away(self.waiting.pop_stale(), error)
        return None

    def take(self, now: float, count: int) -> list[Request]:
        """Up to `count` requests to run now, and no longer to be cancelled. Those that are too late are turned away."""
        requests: list[Request] = []
        while self.waiting and len(requests) < count:
            request = self.waiting.pop()
            if now >= request.deadline:
                late = (now - request.deadline) * 1000
                error = DeadlineExpired(f"its deadline passed {late:.1f} ms before it could run")
                self.tally.expired += self._turn_away(request, error)
            elif request.future.set_running_or_notify_cancel():
                requests.append(request)
            else:
                self.tally.cancelled += 1
            if self.blocked:
                self._admit(self.blocked.pop())
        return requests

    def turn_away_all(self, error: BatcherError) -> None:
        """Nothing that waits will run."""
        while self.blocked:
            self._admit(self.blocked.pop())
        while self.waiting:
            self.tally.closed += self._turn_away(self.waiting.pop(), error)

    def _admit(self, request: Request) -> None:
        self.waiting.push(request)
        if request.admitted is not None:
            request.admitted.set_result(None)

    def _turn_away(self, request: Request, error: BatcherError) -> bool:
        """Whether there is somebody to tell."""
        told = request.future.set_running_or_notify_cancel()
        if told:
            self.turned_away.append((request, error))
        else:
            self.tally.cancelled += 1
        return told
