"""What a server is told: its limits, and how it batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from isodet.errors import ArgumentError


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """The limits of a server. Raises `ArgumentError` for numbers that make no sense.

    max_batch: most pictures in a batch
    max_wait_ms: how long a picture waits for others, milliseconds
    queue: most pictures of a model that wait; for more, the answer is 429
    deadline_ms: what is not answered so many milliseconds after its body came is answered with 504
    max_body_mb: largest body of a request, 10^6 bytes
    max_pixels: largest picture, width times height, by its header
    max_pictures: most pictures in a request
    body_seconds: how long the head, and how long the body of a request may take to come
    decoders: threads that decode pictures, for all models together
    drain_seconds: how long the server goes on at most, once it is asked to end, for requests that it has taken
    poll_seconds: how often the files of the models are looked at; 0: only at SIGHUP
    page: whether there is a page at /, for people who try the models in a browser
    """

    max_batch: int = 16
    max_wait_ms: float = 4.0
    queue: int = 64
    deadline_ms: float = 10_000.0
    max_body_mb: float = 20.0
    max_pixels: int = 50_000_000
    max_pictures: int = 16
    body_seconds: float = 30.0
    decoders: int = 2
    drain_seconds: float = 30.0
    poll_seconds: float = 1.0
    page: bool = True

    def __post_init__(self) -> None:
        for name in ("max_batch", "queue", "max_pixels", "max_pictures", "decoders"):
            if getattr(self, name) < 1:
                raise ArgumentError.of(name, f"expected at least 1, got {getattr(self, name)}")
        for name in ("deadline_ms", "max_body_mb", "body_seconds", "drain_seconds"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ArgumentError.of(name, f"expected a number above 0, got {getattr(self, name)}")
        for name in ("max_wait_ms", "poll_seconds"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ArgumentError.of(name, f"expected a number from 0, got {getattr(self, name)}")

    @property
    def max_body_bytes(self) -> int:
        """The largest body of a request, bytes."""
        return int(self.max_body_mb * 1_000_000)

    @property
    def pictures_per_request(self) -> int:
        """The most pictures in a request: no more than can wait, or it would always be refused."""
        return min(self.max_pictures, self.queue)


class Access(NamedTuple):
    """Who may ask.

    keys: API keys, one of which a request must have; () lets everybody in.
    origins: origins of web pages that browsers let read the answers (CORS).
    """

    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
