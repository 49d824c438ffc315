"""The gate of a server: which requests are taken, counted from their head to their answer."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.serve.errors import CLOSE, RETRY, error_response
from runtime.serve.keys import is_known, key_of
from runtime.serve.metrics import Metrics

OPEN = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")
"""Addresses that need no key, and are answered while the server ends: those that an orchestrator asks."""


class ServerState:
    """Whether a server takes requests, and how many it has.

    draining: it ends; requests are answered with 503. in_flight: requests that it has taken and not answered.
    """

    def __init__(self) -> None:
        self.draining = False
        self.in_flight = 0

    async def idle(self, seconds: float) -> bool:
        """Wait until every request is answered, for at most `seconds`; whether that is so."""
        end = asyncio.get_running_loop().time() + seconds
        while self.in_flight and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.01)
        return not self.in_flight


class Gate:
    """ASGI: lets a request through to `app`, or refuses it: 503 while the server ends or holds too many, 401 without a
    key.

    most: requests in progress, of those that have a body. open_paths: addresses that are always let through.
    """

    def __init__(
        self,
        app: ASGIApp,
        state: ServerState,
        keys: Sequence[str],
        metrics: Metrics,
        most: int,
        open_paths: Collection[str] = OPEN,
    ) -> None:
        self._app, self._state, self._keys, self._metrics, self._most = app, state, keys, metrics, most
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        labels = scope.setdefault("state", {})  # where the application writes the model
        status = 0  # no answer yet

        async def count(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        app = self._app if scope["path"] in self._open else self._refusal(scope) or self._app
        self._state.in_flight += 1
        try:
            await app(scope, receive, count)
        except asyncio.CancelledError:  # by the server, which ends, and whose time for answers is over
            if status or not self._state.draining:
                raise
            await error_response(503, "the server ended before it had an answer", CLOSE)(scope, receive, count)
        finally:
            self._state.in_flight -= 1
            # An exception is answered with 500 by the layer around this one.
            self._metrics.requests.labels(labels.get("model", ""), str(status or 500)).inc()

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        """The answer to a request that is not let through; None for one that is."""
        if self._state.draining:
            return error_response(503, "the server is ending; ask another one", {**RETRY, **CLOSE})
        if self._keys:
            headers = Headers(scope=scope)
            key = key_of(headers.get("authorization"), headers.get("x-api-key"))
            if key is None or not is_known(key, self._keys):
                message = "expected an API key: the header Authorization: Bearer KEY, or X-API-Key: KEY"
                if key is not None:
                    message = "the API key is not one of this server's"
                return error_response(401, message, {"WWW-Authenticate": "Bearer", **CLOSE})
        if scope["method"] == "POST" and self._state.in_flight >= self._most:
            return error_response(429, f"{self._most} requests are in progress already", {**RETRY, **CLOSE})
        return None
