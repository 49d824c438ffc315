"""Which requests join a batch, wait, or are turned away. There are no threads here, and no clock.

The owner holds its lock during every call.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from typing import Literal, get_args

from isodet.errors import ArgumentError, IsodetError
from runtime.batcher.metrics import Tally
from runtime.batcher.queue import FairQueue, Request

Policy = Literal["block", "drop_oldest", "refuse"]
"""What happens to one more frame when the queue is full. block: `submit` waits for a place. drop_oldest: the oldest
frame of the stream with the most frames is dropped for it. refuse: `submit` raises `QueueFull`."""


class BatcherError(IsodetError, RuntimeError):
    """A frame that did not run."""


class FrameDropped(BatcherError):
    """The frame was dropped for a newer one, because the queue was full (policy drop_oldest)."""


class DeadlineExpired(BatcherError):
    """The deadline passed before the frame's batch started."""


class QueueFull(BatcherError):
    """The queue was full (policy refuse), or full for a callback of a future, which may not wait for a place."""


class BatcherClosed(BatcherError):
    """The batcher closed before the frame ran, or was closed before it came."""


class Admission:
    """The queue of a batcher, and with the policy `block` a queue of the requests that wait for a place in it.

    In both, the streams take turns.
    """

    def __init__(self, queue: int, policy: Policy, tally: Tally) -> None:
        if queue < 1:
            raise ArgumentError.of("queue", f"expected at least 1, got {queue}")
        if policy not in get_args(Policy):
            raise ArgumentError.of("policy", f"expected {', '.join(get_args(Policy))}, got {policy!r}")
        self.queue, self.policy, self.tally = queue, policy, tally
        self.waiting, self.blocked = FairQueue(), FairQueue()
        self.turned_away: deque[tuple[Request, BatcherError]] = deque()
        """Requests that will not run, and the errors to answer them with; they cannot be cancelled any more."""

    def offer(self, request: Request, may_wait: bool = True) -> Future[None] | None:
        """Take `request` in. Where it has to wait for a place in the queue, returns a future that ends with the wait.

        Raises `QueueFull` where the policy is refuse, or where it is block and the caller may not wait.
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
        """Requests to run now, which cannot be cancelled any more. Turns away those past their deadline.

        It takes requests until they have `count` inputs or more: the last one may be a frame of many tiles.

        now: the time, in seconds of the batcher's clock.
        """
        requests: list[Request] = []
        inputs = 0
        while self.waiting and inputs < count:
            request = self.waiting.pop()
            if now >= request.deadline:
                late = (now - request.deadline) * 1000
                error = DeadlineExpired(f"its deadline passed {late:.1f} ms before it could run")
                self.tally.expired += self._turn_away(request, error)
            elif request.future.set_running_or_notify_cancel():
                requests.append(request)
                inputs += len(request.inputs)
            else:
                self.tally.cancelled += 1
            if self.blocked:
                self._admit(self.blocked.pop())
        return requests

    def turn_away_all(self, error: BatcherError) -> None:
        """Turn away every request that waits."""
        while self.blocked:
            self._admit(self.blocked.pop())
        while self.waiting:
            self.tally.closed += self._turn_away(self.waiting.pop(), error)

    def _admit(self, request: Request) -> None:
        self.waiting.push(request)
        if request.admitted is not None:
            request.admitted.set_result(None)

    def _turn_away(self, request: Request, error: BatcherError) -> bool:
        """False where the request was cancelled, and needs no answer."""
        needs_answer = request.future.set_running_or_notify_cancel()
        if needs_answer:
            self.turned_away.append((request, error))
        else:
            self.tally.cancelled += 1
        return needs_answer
