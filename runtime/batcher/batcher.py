"""Many cameras, threads or coroutines, one engine: frames that come one by one run in batches."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from isodet.errors import ArgumentError
from runtime.backends.protocol import Backend
from runtime.batcher.admission import Admission, BatcherClosed, Policy
from runtime.batcher.batch import Canvas, Outcome, answer, infer
from runtime.batcher.ends import FORKED, open_batchers
from runtime.batcher.metrics import BatcherMetrics, Tally
from runtime.batcher.queue import DetectionFuture, Input, Request
from runtime.detections import Detections
from runtime.images.frames import Color, Frame, load_frame
from runtime.images.region import Region, Roi

if TYPE_CHECKING:
    from runtime.detector import Detector, Threshold

_log = logging.getLogger(__name__)


class Batcher(AbstractContextManager["Batcher"]):
    """Collects frames into batches; every frame gets exactly one answer, through a future.

    >>> with Detector("best.onnx", threshold=0.5).batcher(max_batch=16, max_wait_ms=4) as batcher:
    ...     futures = [batcher.submit("street.png", stream=camera) for camera in ("door", "gate")]  # from any thread
    >>> [future.result().names for future in futures]  # in a coroutine: await batcher.detect(frame)
    [['car'], ['car']]

    A batch starts when `max_batch` frames wait, or when one has waited for `max_wait_ms`. While the engine is busy,
    frames gather: under load batches are full, and no frame waits for that time. Streams take turns, frame by frame,
    and each stream gets its answers in order.

    The thread that submits reads, checks and letterboxes its frame: each camera has a thread already, OpenCV works
    there without Python's lock, and the queue holds the network's small input. So the caller may reuse the frame's
    memory when `submit` returns. The tiles of a frame wait and run together, and get one answer. `workers` threads run
    batches; a second one stacks its batch while the first one's runs. One more thread turns outputs into detections and
    answers, so that neither this nor a callback of a future delays the engine.

    `max_batch`: most frames, or tiles, in a batch, limited by the backend. `queue`: most frames that wait. `policy`:
    what happens when the queue is full. `workers`: contexts on one set of weights. Raises ValueError for impossible
    numbers, `BackendError` for several workers on a backend that runs one call at a time.
    """

    def __init__(
        self,
        detector: Detector,
        max_batch: int = 16,
        max_wait_ms: float = 4.0,
        queue: int = 64,
        policy: Policy = "block",
        workers: int = 1,
    ) -> None:
        for name, count in (("max_batch", max_batch), ("workers", workers)):
            if count < 1:
                raise ArgumentError.of(name, f"expected at least 1, got {count}")
        if not 0 <= max_wait_ms < math.inf:
            raise ArgumentError.of("max_wait_ms", f"expected milliseconds from 0, got {max_wait_ms}")
        backend = detector.backend
        contexts = [backend, *(backend.context() for _ in range(workers - 1))]
        self.detector = detector
        self.max_batch = min(max_batch, backend.fixed_batch or backend.max_batch)
        self.max_wait_ms, self.queue, self.policy = max_wait_ms, queue, policy
        self._full = min(self.max_batch, queue)  # as no more than that can wait
        self._clock = time.monotonic
        lock = threading.Lock()
        self._work = threading.Condition(lock)  # there may be a batch to start
        self._done = threading.Condition(lock)  # there may be an answer to give
        self._tally = Tally()
        self._admission = Admission(queue, policy, self._tally)
        self._wake_at = math.inf  # when a sleeping worker looks again by itself
        self._taken = self._delivered = 0  # numbers of batches; those between run or wait for delivery
        self._running: dict[int, list[Request]] = {}
        self._finished: dict[int, list[Outcome]] = {}
        self._closing = False
        self.closed = ""
        """Why it takes no more frames; '' while it does."""
        self._most_undelivered = workers + 2
        self._workers = workers
        self._deliverer = threading.Thread(target=self._deliver, name="batcher-delivery", daemon=True)
        self._threads = [threading.Thread(target=self._run, args=(c,), name="batcher", daemon=True) for c in contexts]
        open_batchers.add(self)
        for thread in (self._deliverer, *self._threads):
            thread.start()

    # the caller's side

    def submit(
        self,
        frame: Frame,
        stream: Hashable = None,
        deadline_ms: float | None = None,
        threshold: Threshold | None = None,
        color: Color = "bgr",
        roi: Roi | None = None,
    ) -> DetectionFuture:
        """A future of the detections in `frame`; `frame`, `threshold`, `color` and `roi` as in `Detector.__call__`.

        `stream`: any hashable; streams take turns. `deadline_ms`: the frame does not run later than this after the
        call. The future may be cancelled until its batch starts; it raises `FrameDropped`, `DeadlineExpired`,
        `BatcherClosed`, or the engine's own error. Its callbacks run in the delivery thread. It also says when its
        batch started and finished.
        Raises `FrameError`, `ImageError` or ValueError for wrong arguments, `QueueFull`, `BatcherClosed`.
        """
        request = self._prepare(frame, stream, deadline_ms, threshold, color, roi)
        admitted = self._offer(request, may_wait=threading.current_thread() is not self._deliverer)
        if admitted is not None:
            try:
                admitted.result()
            except BaseException:  # Ctrl-C: the caller never gets the future
                request.future.cancel()
                raise
        return request.future

    async def detect(
        self,
        frame: Frame,
        stream: Hashable = None,
        deadline_ms: float | None = None,
        threshold: Threshold | None = None,
        color: Color = "bgr",
        roi: Roi | None = None,
    ) -> Detections:
        """The detections in `frame`; arguments and errors as in `submit`. A full queue blocks the awaiting task only.

        Reading and letterboxing run in the event loop's executor, so that the loop goes on meanwhile.
        """
        import asyncio  # late: a deployment without an event loop need not load it

        arguments = (frame, stream, deadline_ms, threshold, color, roi)
        request = await asyncio.get_running_loop().run_in_executor(None, self._prepare, *arguments)
        self._offer(request, may_wait=True)
        return await asyncio.wrap_future(request.future)

    def metrics(self) -> BatcherMetrics:
        """Counts, batch sizes and latencies so far, also after closing. Raises `BatcherClosed` in a forked process."""
        if self.closed == FORKED:
            raise BatcherClosed(FORKED)
        with self._work:
            running = sum(len(requests) for requests in self._running.values())
            return self._tally.snapshot(len(self._admission.blocked), len(self._admission.waiting), running)

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more frames, answer those that were taken, end the threads.

        With `drain`, waiting frames run; without it they get `BatcherClosed`. Frames without an answer after `timeout`
        seconds, as those in an engine that hangs, get `BatcherClosed`, too. A second call does nothing, or shortens a
        draining that goes on. In a callback of a future it does not wait, since the threads wait for that callback.
        """
        if self.closed == FORKED:
            return
        with self._work:
            self._closing, self.closed = True, "the batcher is closed"
            if not drain:
                self._admission.turn_away_all(BatcherClosed("the batcher was closed before this frame ran"))
            self._work.notify_all()
            self._done.notify_all()
        if threading.current_thread() is self._deliverer:
            return
        end = None if timeout is None else time.monotonic() + timeout
        threads = (*self._threads, self._deliverer)
        for thread in threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
        if timeout is not None and any(thread.is_alive() for thread in threads):
            self._abandon(BatcherClosed(f"no answer within {timeout:g} s of closing the batcher"))
        open_batchers.discard(self)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(drain=kind is None)

    def _prepare(
        self,
        frame: Frame,
        stream: Hashable,
        deadline_ms: float | None,
        threshold: Threshold | None,
        color: Color,
        roi: Roi | None,
    ) -> Request:
        """The request for a frame: read, checked and letterboxed. Raises as `submit` does."""
        now = self._clock()
        if self.closed:
            raise BatcherClosed(self.closed)
        if deadline_ms is not None and not deadline_ms >= 0:
            raise ArgumentError.of("deadline_ms", f"expected milliseconds from 0, got {deadline_ms}")
        limits = self.detector.threshold if threshold is None else self.detector.limits(threshold)
        region = None if roi is None else Region.of(roi)
        image, frame_hw = load_frame(frame, 0, color, region, in_tiles=self.detector.tiles is not None)
        grid = self.detector.grid(image)
        inputs = []
        for x1, y1, x2, y2 in grid.windows:
            place = self.detector.place(image[y1:y2, x1:x2])
            inputs.append(Input(place.apply(image[y1:y2, x1:x2]), place))
        wait_ms, deadline = self.max_wait_ms, math.inf
        if deadline_ms is not None:
            # It waits for others for at most half of that time, or a single frame could never run.
            wait_ms, deadline = min(wait_ms, deadline_ms / 2), now + deadline_ms / 1000
        due = now + wait_ms / 1000
        return Request(inputs, grid, frame_hw, region, limits, stream, now, due, deadline, DetectionFuture())

    def _offer(self, request: Request, may_wait: bool) -> Future[None] | None:
        with self._work:
            if self.closed:
                raise BatcherClosed(self.closed)
            admitted = self._admission.offer(request, may_wait)
            if self._admission.waiting.inputs >= self._full or request.due < self._wake_at:
                self._work.notify()
            if self._admission.turned_away:
                self._done.notify()
            return admitted

    # workers: from the queue through the engine

    def _run(self, context: Backend) -> None:
        canvas = Canvas(context)
        while (taken := self._take()) is not None:
            number, requests = taken
            outcomes = infer(self.detector, requests, context, canvas, self.max_batch)
            finished = self._clock()
            for request in requests:
                request.future.finished = finished
            with self._work:
                self._finished[number] = outcomes
                self._done.notify()
        with self._work:
            self._workers -= 1
            self._done.notify()

    def _take(self) -> tuple[int, list[Request]] | None:
        """Wait for the next batch: its number and requests; None when there will be none."""
        with self._work:
            while True:
                now = self._clock()
                seconds = self._starts_in(now)
                if seconds == 0:
                    requests = self._admission.take(now, self.max_batch)
                    self._wake_at = math.inf  # sleeping workers planned with requests that are gone
                    if self._admission.waiting or self._closing:
                        self._work.notify_all()
                    if self._admission.turned_away:
                        self._done.notify()
                    if requests:
                        break
                elif self._closing and not self._admission.waiting:
                    return None
                else:
                    self._wake_at = min(self._wake_at, math.inf if seconds is None else now + seconds)
                    self._work.wait(seconds)
            for request in requests:
                request.future.started = now
            number = self._taken
            self._taken += 1
            self._running[number] = requests
            self._tally.batch(len(requests))
            return number, requests

    def _starts_in(self, now: float) -> float | None:
        """Seconds until the next batch is to start; None while it waits for a frame or for a delivery."""
        waiting = self._admission.waiting
        if not waiting or self._taken - self._delivered >= self._most_undelivered:
            return None
        return 0.0 if self._closing else waiting.starts_in(now, self._full)

    # delivery: from outputs to answers

    def _deliver(self) -> None:
        turned_away = self._admission.turned_away
        while True:
            with self._work:
                while not turned_away and self._delivered not in self._finished:
                    if self._workers == 0:
                        return
                    self._done.wait()
                count = len(turned_away)
                outcomes = self._finished.pop(self._delivered, None)
            if outcomes is not None:
                self._deliver_batch(outcomes)
            for _ in range(count):  # one by one: `close` answers those that are still in the list
                self._settle(*turned_away.popleft())

    def _deliver_batch(self, outcomes: Sequence[Outcome]) -> None:
        answered, failed = [], 0
        for outcome in outcomes:
            result = answer(self.detector, outcome)
            if self._settle(outcome.request, result):
                if isinstance(result, Detections):
                    answered.append(self._clock() - outcome.request.submitted)
                else:
                    failed += 1
        with self._work:
            if self._running.pop(self._delivered, None) is not None:
                self._tally.answers(answered, failed)
            self._delivered += 1
            self._work.notify()

    def _settle(self, request: Request, result: Detections | BaseException) -> bool:
        """Answer a request; False where `close` did so already, because its time was over."""
        try:
            if isinstance(result, BaseException):
                request.future.set_exception(result)
            else:
                request.future.set_result(result)
        except InvalidStateError:
            return False
        except BaseException:  # the future logs an Exception itself; SystemExit would end all delivery
            _log.exception("a callback of a future raised")
        return True

    def _abandon(self, error: BatcherClosed) -> None:
        """Answer all requests without an answer, since the threads do not."""
        with self._work:
            self._admission.turn_away_all(error)
            left = [request for requests in self._running.values() for request in requests]
            self._tally.closed += len(left)
            self._running.clear()
            left += [request for request, _ in self._admission.turned_away.copy()]
        for request in left:
            self._settle(request, error)
