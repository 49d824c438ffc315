"""How sources are read, and the state of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from isodet.errors import ArgumentError
from runtime.streams.capture import DECODERS, DecoderName

State = Literal["idle", "connecting", "running", "stalled", "retrying", "ended", "failed"]
"""idle: not started yet. stalled: no frame for `stall_s`. retrying: pauses before it connects again. ended: all frames
are read. failed: no more frames, for the reason in `error`."""


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """How sources are read. Raises ValueError for values that make no sense.

    >>> options = StreamOptions(every=2, stall_s=5, give_up_s=60)
    >>> with Streams(["street.avi"], options) as streams:  # or detector.stream("street.avi", options=options)
    ...     print([frame.index for frame in streams])
    [0, 2, 4]

    queue: frames decoded ahead of the consumer, for each source of which all frames are kept
    every: take each n-th frame only
    keep: what happens when the consumer is too slow. newest: a newer frame replaces the one that waits. all: reading
        waits. auto: newest for live sources, all for files
    stall_s: seconds without a frame after which a source is lost: a live one is connected again, a file fails
    reconnect: whether live sources that end, fail or stall are connected again
    backoff_s: pause before the first new connection; it doubles with each that fails, up to `backoff_max_s`, and is
        short again after a connection that gave frames for 5 s, or for twice the pause before it
    backoff_max_s: the longest pause
    give_up_s: seconds without a frame after which a live source has failed for good (default: never); one that refuses
        the user or the password has failed after three attempts in a row
    decoder: pyav: the extra video; nvidia: files on a GPU, by an extra
    files_at_once: pictures, folders and videos read at the same time; further ones wait. Live sources never wait
    """

    queue: int = 4
    every: int = 1
    keep: Literal["auto", "newest", "all"] = "auto"
    stall_s: float = 10.0
    reconnect: bool = True
    backoff_s: float = 0.5
    backoff_max_s: float = 30.0
    give_up_s: float | None = None
    decoder: DecoderName = "opencv"
    files_at_once: int = 8

    def __post_init__(self) -> None:
        for name in ("queue", "every", "files_at_once"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError.of(f"StreamOptions.{name}", f"expected a whole number of at least 1, got {value!r}")
        for name in ("stall_s", "backoff_s", "backoff_max_s", "give_up_s"):
            value = getattr(self, name)
            if not (value is None and name == "give_up_s") and not 0 < value < float("inf"):
                raise ArgumentError.of(f"StreamOptions.{name}", f"expected a positive number of seconds, got {value!r}")
        for name, choices in (("keep", ("auto", "newest", "all")), ("decoder", DECODERS)):
            if getattr(self, name) not in choices:
                expected = f"{', '.join(choices[:-1])} or {choices[-1]}"
                raise ArgumentError.of(f"StreamOptions.{name}", f"expected {expected}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class SourceState:
    """The state of a source."""

    source: int
    """Its number among the sources."""
    name: str
    """As the user wrote it, without a password."""
    state: State
    frames: int
    """Frames read so far."""
    dropped: int
    """Frames of these that a newer one replaced before anybody took them."""
    reconnects: int
    """Connections after the first one, with those that failed."""
    error: str | None
    """The latest error; it stays after the source has recovered."""
    size_hw: tuple[int, int] | None
    """Pixels of the latest frame."""
