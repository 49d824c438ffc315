"""Reading one source ahead in a thread: a bounded queue, reconnection, and a state that can be read at any time."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Literal

from runtime.streams.options import SourceState, State, StreamOptions
from runtime.streams.source import Origin, Source, SourceFrame
from runtime.streams.url import RefusedError, StreamError, without_password

_log = logging.getLogger(__name__)

JOIN_S = 5.0
"""How long closing waits for the threads. One that hangs inside a driver cannot be ended from outside."""
STALE_S = 1.0
"""A live source that was opened earlier than this is opened again, as its unread frames are old."""
REFUSALS = 3
"""A source that refuses the user or password so often in a row has failed. Cameras lock accounts after some more."""
WELL_S = 5.0
"""After a connection that gave frames for so long, or for twice the pause before it, the next pause is short again."""


class Reader:
    """Reads one source in a thread of its own.

    All readers of a `Streams` share `lock`, and `changed` (on that lock) wakes the consumer. `live` is a guess until
    the source is open: a URL may turn out to be a file. `opener` opens a source, and stops waiting for it when the
    event that it gets is set. `opened`: the source, where it is open already.
    """

    def __init__(
        self, number: int, origin: Origin | None, opener: Callable[[Origin, threading.Event], Source],
        live: bool, options: StreamOptions, lock: threading.RLock, changed: threading.Condition,
        opened: Source | None = None,
    ) -> None:  # fmt: skip
        self.number, self.live, self.opened = number, live, opened
        self.name = without_password(str(origin if origin is not None else opened.name if opened else number))
        self.source: Source | None = None
        """The source as it was opened last."""
        self.failure: Exception | None = None
        """The reason why it failed for good."""
        self.queue: deque[SourceFrame] = deque()
        self._origin, self._opener, self._options = origin, opener, options
        self._changed, self._room = changed, threading.Condition(lock)
        self._stop = threading.Event()
        self._state: State = "idle"
        self._frames = self._dropped = self._connections = self._numbers = 0
        self._error: str | None = None
        self._size_hw: tuple[int, int] | None = None
        self._started = self._last_frame = 0.0
        self._waiting_since: float | None = None
        self._generation = 0
        self._threads: list[threading.Thread] = []
        self._cancelled = threading.Event()
        """Ends the waits of the present connection."""

    # -----------------------------------------------------------------------------------------
    # the consumer's side; every method but `end` and `join` is called with the lock held

    @property
    def done(self) -> bool:
        """Whether no further frame will be read; `queue` may still hold some."""
        return self._state in ("ended", "failed")

    @property
    def idle(self) -> bool:
        return self._state == "idle"

    def start(self) -> None:
        self._state = "connecting"
        self._started = self._last_frame = time.monotonic()
        self._spawn(pause=False)

    def take(self) -> SourceFrame | None:
        """The next frame, if one is there now."""
        if not self.queue:
            return None
        frame = self.queue.popleft()
        self._room.notify()
        return frame

    def watch(self) -> None:
        """Notice a read that hangs: abandon it, and connect again or give the source up.

        Webcams and URLs have a time limit of their own (`stall_s`); this one is for files, and for systems where
        cameras are not read in processes.
        """
        now = time.monotonic()
        waits = self._waiting_since is not None or self._state == "retrying"
        if self.live and waits and not self.done and self._silent(now):
            self._abandon()
            self._end("failed", self._given_up())
            return
        limit = self._options.stall_s + min(2.0, 0.5 * self._options.stall_s)
        if self._waiting_since is None or now - self._waiting_since < limit:
            return
        trouble = StreamError(f"{self.name}: gives no frame for {self._options.stall_s:g} s")
        if not self._reconnects:
            self._abandon()
            self._end("failed", trouble)
        elif sum(thread.is_alive() for thread in self._threads) < 2:  # never more than one abandoned thread
            self._note_trouble(trouble)
            self._abandon()
            self._spawn(pause=True)

    def report(self) -> SourceState:
        state: State = self._state
        hangs = self._waiting_since is not None and time.monotonic() - self._waiting_since > self._options.stall_s
        if hangs and state in ("connecting", "running"):
            state = "stalled"
        reconnects = max(0, self._connections - 1)
        return SourceState(
            self.number, self.name, state, self._frames, self._dropped, reconnects, self._error, self._size_hw
        )

    def end(self) -> None:
        """Tell the thread to end. Called without the lock."""
        with self._changed:
            self._abandon()
            self._stop.set()
            self._room.notify_all()
            opened, self.opened = self.opened, None
        if opened is not None:
            opened.close()

    def join(self, limit: float) -> bool:
        """Wait for the thread until `limit` (by `time.monotonic`); False where it hangs, and is left alone.

        Called without the lock.
        """
        with self._changed:
            threads = [thread for thread in self._threads if thread is not threading.current_thread()]
        for thread in threads:
            thread.join(max(0.0, limit - time.monotonic()))
        with self._changed:
            if not self.done:
                self._state = "ended"
        return not any(thread.is_alive() for thread in threads)

    # -----------------------------------------------------------------------------------------
    # the thread's side

    @property
    def _reconnects(self) -> bool:
        return self.live and self._options.reconnect and self._origin is not None

    def _abandon(self) -> None:
        """Discard all that the present thread will still read. Its wait ends, where its decoder can end it."""
        self._generation += 1
        self._waiting_since = None
        self._cancelled.set()

    def _spawn(self, pause: bool) -> None:
        self._generation += 1
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        name = f"isodet-source-{self.number}"
        thread = threading.Thread(target=self._run, args=(self._generation, pause), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self, generation: int, pause: bool) -> None:
        wait, paused, refused = self._options.backoff_s, 0.0, 0
        while True:
            if pause:
                with self._changed:
                    if generation != self._generation:
                        return
                    self._state, self._waiting_since = "retrying", None
                    silent_in = self._silent_in(time.monotonic())
                paused = wait
                if self._stop.wait(wait if silent_in is None else min(wait, silent_in)):
                    return
                wait = min(2 * wait, self._options.backoff_max_s)
                with self._changed:
                    if generation != self._generation:
                        return
                    if self._silent(time.monotonic()):
                        self._end("failed", self._given_up())
                        return
            connected, frames = time.monotonic(), self._frames
            trouble: Exception = StreamError(f"{self.name}: the stream ended")
            finished = False
            try:
                self._read(generation)
                finished = not self.live
            except Exception as error:  # reported by `failure` or `error`; the other sources go on
                trouble = error
            refused = refused + 1 if isinstance(trouble, RefusedError) else 0
            with self._changed:
                if generation != self._generation:
                    return
                self._waiting_since = None
                if finished:
                    self._end("ended", None)
                    return
                silent = self._silent(time.monotonic())
                last = not self._reconnects
                if last or silent or refused == REFUSALS:
                    ended = isinstance(trouble, StreamError) and self._frames > 0 and self.live and last and not silent
                    self._end("ended" if ended else "failed", trouble)
                    return
                self._note_trouble(trouble)
            if self._frames > frames and self._last_frame - connected >= min(WELL_S, 2 * paused):
                wait = self._options.backoff_s
            pause = True

    def _read(self, generation: int) -> None:
        """Read one connection to its end, or until this thread is abandoned."""
        with self._changed:
            if generation != self._generation:
                return
            source, self.opened = self.opened, None
            self._state, self._waiting_since = "connecting", time.monotonic()
            self._connections += 1
            cancelled = self._cancelled = source.cancelled if source is not None else threading.Event()
        stale = source is not None and source.live and time.monotonic() - source.opened_s > STALE_S
        if source is not None and stale and self._origin is not None:
            source.close()
            source = None
        if source is None:
            assert self._origin is not None  # a source without an origin is open already, and is never opened again
            source = self._opener(self._origin, cancelled)
        with self._changed:
            if generation != self._generation:
                source.close()
                return
            self.source, self.live, first = source, source.live, self._numbers
        frames = iter(source)
        try:
            while True:
                with self._changed:
                    if generation != self._generation:
                        return
                    self._waiting_since = time.monotonic()
                frame = next(frames, None)
                if frame is None:
                    return
                self._put(generation, source, frame, first)
        finally:
            if isinstance(frames, Generator):
                frames.close()
            source.close()  # as a generator that never ran closes nothing

    def _put(self, generation: int, source: Source, frame: SourceFrame, first: int) -> None:
        newest = self._options.keep == "newest" or (self._options.keep == "auto" and source.live)
        with self._changed:
            if generation != self._generation:
                return
            self._waiting_since, self._last_frame = None, time.monotonic()
            self._state = "running"
            self._frames += 1
            self._numbers = first + frame.index + 1
            size_hw = (frame.image.shape[0], frame.image.shape[1])
            if self._size_hw not in (None, size_hw) and source.is_video:
                _log.warning("%s: its frames change from %s to %s pixels (H, W)", self.name, self._size_hw, size_hw)
            self._size_hw = size_hw
            if newest and self.queue:
                self._dropped += 1
                source.recycle(self.queue.popleft().image)
            while not newest and len(self.queue) >= self._options.queue:
                self._room.wait()
                if generation != self._generation:
                    return
            time_s = self._last_frame - self._started if source.live else frame.time_s
            self.queue.append(replace(frame, source=self.number, index=first + frame.index, time_s=time_s))
            self._changed.notify()

    def _silent_in(self, now: float) -> float | None:
        """Seconds until `give_up_s` have passed since the last frame; None for never."""
        limit = self._options.give_up_s
        return None if limit is None else max(0.0, self._last_frame + limit - now)

    def _silent(self, now: float) -> bool:
        return self._silent_in(now) == 0.0

    def _given_up(self) -> StreamError:
        latest = f"; the latest trouble: {self._error}" if self._error is not None else ""
        return StreamError(f"{self.name}: no frame for {self._options.give_up_s:g} s, given up{latest}")

    def _note_trouble(self, error: Exception) -> None:
        if self._error != str(error):  # a dead camera gives the same error at every attempt
            _log.warning("%s (trying again)", error)
        self._error = str(error)

    def _end(self, state: Literal["ended", "failed"], error: Exception | None) -> None:
        self._state = state
        if error is not None:
            self._error = str(error)
            self.failure = error if state == "failed" else None
        if state == "failed" and self.live:
            _log.warning("%s: failed for good, and is not tried again; %s", self.name, error)
        self._changed.notify()
