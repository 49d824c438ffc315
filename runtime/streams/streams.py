"""Many sources, one detector: frames of files, cameras and URLs, decoded ahead in threads, in batches."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

from isodet.errors import ArgumentError
from runtime.images.image import Image, ImageError
from runtime.streams.open import camera, expand, open_source
from runtime.streams.options import SourceState, StreamOptions
from runtime.streams.reader import JOIN_S, Reader
from runtime.streams.source import Origin, Source, SourceFrame
from runtime.streams.url import StreamError

_log = logging.getLogger(__name__)

_POLL_S = 0.1
"""A waiting consumer looks this often for a stop and for sources that hang."""

Result = TypeVar("Result")


class Streams(AbstractContextManager["Streams"]):
    """Reads several sources at once, each in a thread of its own.

        with Streams(["rtsp://10.0.0.1/1", "rtsp://10.0.0.2/1", "clip.mp4"]) as streams:
            for frame, detections in streams.detect(detector):
                print(frame.source, frame.index, frame.time_s, detections.names)

    `sources`: paths, globs, webcam numbers, URLs, or opened `Source`s. Live ones (webcams, URLs without an end) keep
    their newest frame, and are connected again when the connection is lost; of the others, every frame comes, in order.
    A source that fails does not stop the rest (see `states`). When all have failed, iterating raises the first error.
    `on_broken` gets the broken pictures of folders, from the threads; without it they are logged.

    Raises `StreamError` at once for missing files, and for an empty list of sources.
    """

    def __init__(
        self,
        sources: Sequence[Origin | Source],
        options: StreamOptions | None = None,
        on_broken: Callable[[ImageError], None] | None = None,
    ) -> None:
        if isinstance(sources, str) or not sources:
            raise StreamError(f"expected a list of at least one source, got {sources!r}")
        self.options = options = options or StreamOptions()
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        self._stopping = False
        self._next = 0

        def opener(origin: Origin, cancelled: threading.Event) -> Source:
            return open_source(origin, on_broken, options.decoder, options.every, options.stall_s, cancelled)

        self._readers: list[Reader] = []
        for entry in sources:
            for source in [entry] if isinstance(entry, Source) else expand(entry):
                if isinstance(source, Source):
                    opened, origin, live = source, source.origin, source.live
                else:
                    opened, origin, live = None, source, camera(source) is not None
                number = len(self._readers)
                self._readers.append(Reader(number, origin, opener, live, options, lock, self._changed, opened))
        # This also runs when the program ends: else the interpreter would end the threads inside a decoder.
        self._close = weakref.finalize(self, _end, self._readers)

    def __len__(self) -> int:
        """The number of sources, where each video of a glob counts."""
        return len(self._readers)

    @property
    def states(self) -> list[SourceState]:
        """The state of each source now. Any thread may ask, at any time."""
        with self._changed:
            return [reader.report() for reader in self._readers]

    def opened(self, source: int) -> Source | None:
        """The source with number `source`; None until it has been opened."""
        return self._readers[source].source

    def __iter__(self) -> Iterator[SourceFrame]:
        """One frame after another; the sources take turns."""
        for frames in self.batches(1):
            yield from frames

    def batches(self, size: int | None = None) -> Iterator[list[SourceFrame]]:
        """Lists of 1 to `size` frames (default: the number of sources) that are there now; the sources take turns.

        A batch never waits to be full: when the consumer is slow, frames gather and batches grow by themselves. A live
        source has at most one frame in a batch, its newest.
        """
        if size is not None and size < 1:
            raise ArgumentError.of("size", f"expected at least 1, got {size}")
        size = size or len(self._readers)
        while (frames := self._gather(size)) is not None:
            yield frames

    def detect(
        self, detector: Callable[[list[Image]], Sequence[Result]], batch: int | None = None
    ) -> Iterator[tuple[SourceFrame, Result]]:
        """(frame, result) for every frame. `detector` gets lists of up to `batch` pictures uint8 [H, W, 3] BGR, and
        returns one result for each: a `runtime.Detector`, or any such function.
        """
        for frames in self.batches(batch):
            yield from zip(frames, detector([frame.image for frame in frames]), strict=True)

    def failed_with(self, error: BaseException) -> bool:
        """Whether one of the sources failed with `error`."""
        return any(reader.failure is error for reader in self._readers)

    def stop(self) -> None:
        """End the iteration after the present batch. For signal handlers and other threads: it takes no lock."""
        self._stopping = True

    def close(self) -> None:
        """Stop, end all threads and close all sources. A second call does nothing."""
        self.stop()
        self._close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _gather(self, size: int) -> list[SourceFrame] | None:
        with self._changed:
            while not self._stopping:
                self._start_more()
                for reader in self._readers:
                    reader.watch()
                frames = self._take(size)
                if frames:
                    return frames
                if all(reader.done for reader in self._readers):
                    self._raise_if_all_failed()
                    return None
                self._changed.wait(_POLL_S)
            return None

    def _take(self, size: int) -> list[SourceFrame]:
        frames: list[SourceFrame] = []
        before = -1
        while len(frames) < size and before < len(frames):  # until a round over all sources gives nothing
            before = len(frames)
            for _ in range(len(self._readers)):
                reader = self._readers[self._next]
                if len(frames) == size:
                    break
                self._next = (self._next + 1) % len(self._readers)
                if not (reader.live and any(frame.source == reader.number for frame in frames)):
                    frame = reader.take()
                    if frame is not None:
                        frames.append(frame)
        return frames

    def _start_more(self) -> None:
        running = sum(not (reader.live or reader.idle or reader.done) for reader in self._readers)
        for reader in self._readers:
            if reader.idle and (reader.live or running < self.options.files_at_once):
                reader.start()
                running += not reader.live

    def _raise_if_all_failed(self) -> None:
        failures = [reader.failure for reader in self._readers if reader.failure is not None]
        if len(failures) == len(self._readers):
            raise failures[0]
        for failure in failures:
            _log.warning("%s", failure)


def _end(readers: list[Reader]) -> None:
    """End the threads and close their sources."""
    for reader in readers:
        reader.end()
    limit = time.monotonic() + JOIN_S  # one limit for all, as they may hang at the same time
    hanging = [reader.name for reader in readers if not reader.join(limit)]
    if hanging:
        _log.warning("%s: still inside a read that does not return; left alone", ", ".join(hanging))
