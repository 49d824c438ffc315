"""Which status an error is answered with."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fastapi.responses import JSONResponse

from isodet.errors import ArgumentError, IsodetError
from runtime.batcher.admission import BatcherClosed, DeadlineExpired, QueueFull
from runtime.images.frames import FrameError
from runtime.images.image import ImageError

_log = logging.getLogger(__name__)

RETRY = {"Retry-After": "1"}
"""Seconds after which a client should try again."""
CLOSE = {"Connection": "close"}
"""Of an answer that is given before the body has come: the rest of the body is not read."""


class RequestError(IsodetError, RuntimeError):
    """A request that is refused.

    status: of the answer, as 413. headers: of the answer.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})


def answer_error(error: Exception) -> JSONResponse:
    """The answer to a request that met `error`: {"error": its message}.

    An error that is neither the client's nor the load's is logged, and its message, which may name files, is not sent.
    """
    headers: dict[str, str] = {}
    if isinstance(error, RequestError):
        status, headers = error.status, error.headers
    elif isinstance(error, (ImageError, FrameError, ArgumentError)):
        status = 422
    elif isinstance(error, QueueFull):
        status, headers = 429, RETRY
    elif isinstance(error, DeadlineExpired):
        status = 504
    elif isinstance(error, BatcherClosed):
        status, headers = 503, RETRY
    else:
        _log.error("a request failed", exc_info=error)
        return error_response(500, "the server failed; its log says why")
    return error_response(status, str(error), headers)


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """{"error": message}"""
    return JSONResponse({"error": message}, status, dict(headers or {}))
