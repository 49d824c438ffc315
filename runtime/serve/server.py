"""The server's process: its socket, its signals and its end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from isodet.errors import IsodetError
from runtime.serve.app import make_app
from runtime.serve.gate import ServerState
from runtime.serve.models import Load, Models
from runtime.serve.options import Access, ServeOptions

_log = logging.getLogger(__name__)
_LAST_SECONDS = 5
"""How long connections may take to close after the last answer."""


class ServeError(IsodetError, RuntimeError):
    """A server that cannot start."""


def serve(
    paths: Mapping[str, Path],
    load: Load,
    options: ServeOptions,
    access: Access,
    host: str,
    port: int,
    started: Callable[[Models, str], None],
) -> bool:
    """Serve the models at `paths` by name until SIGTERM or SIGINT; whether every request that was taken was answered.

    SIGHUP loads the models again. `port` 0 takes a free one. `started` is called with the models and the server's
    address when it takes requests. Call it in the main thread, which signals come to. Raises `ServeError` for an
    address that it cannot listen at, and what `Detector` raises for a file that cannot be served.
    """
    with (
        bound_socket(host, port) as listener,  # first: loading models takes time
        Models(paths, load, options) as models,
        _Threads(options.decoders, thread_name_prefix="serve-decode") as decoders,
        _Threads(1, thread_name_prefix="serve-tensors") as tensor_worker,
    ):
        state = ServerState()
        config = uvicorn.Config(
            make_app(models, options, access, state, decoders, tensor_worker),
            http=partial(_Protocol, options.body_seconds),  # type: ignore[arg-type]
            loop="asyncio", ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
            proxy_headers=False, timeout_keep_alive=5, timeout_graceful_shutdown=_LAST_SECONDS,
        )  # fmt: skip
        address = listener.getsockname()
        shown = f"[{address[0]}]" if listener.family == socket.AF_INET6 else address[0]
        say = partial(started, models, f"http://{shown}:{address[1]}")
        return asyncio.run(_serve(config, listener, models, state, options, say))


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that is bound to the address, and does not listen yet. Raises `ServeError` where that cannot be."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        reason = f"cannot listen at {host} port {port}: {error.strerror or error}"
        raise ServeError(f"{reason}; choose others with --host and --port") from None
    return listener


class _Threads(ThreadPoolExecutor):
    """Threads that the end of the server does not wait for: an engine may hang in one."""

    def __exit__(self, *_: object) -> None:
        self.shutdown(wait=False, cancel_futures=True)


class _Server(uvicorn.Server):
    """Leaves signals to `_serve`: uvicorn would end at once, without answers for what waits."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Protocol(H11Protocol):
    """HTTP/1.1, where a connection that does not complete the head of a request within `seconds` is closed."""

    def __init__(self, seconds: float, *, config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> None:
        super().__init__(config=config, server_state=server_state, app_state=app_state, _loop=_loop)
        self._head_seconds = seconds
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_timer()

    def _watch_head(self) -> None:
        if not self._is_between_requests():
            self._stop_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self._head_seconds, self._close_late)

    def _is_between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _close_late(self) -> None:
        self._head_timer = None
        if self._is_between_requests():
            self.transport.close()


async def _serve(
    config: uvicorn.Config,
    listener: socket.socket,
    models: Models,
    state: ServerState,
    options: ServeOptions,
    started: Callable[[], None],
) -> bool:
    asked, hurried = asyncio.Event(), asyncio.Event()

    def end() -> None:
        (hurried if asked.is_set() else asked).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    loop.add_signal_handler(signal.SIGHUP, models.reload)
    server = _Server(config)
    serving = asyncio.create_task(server.serve([listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if server.started:
        started()
        await _first(serving, asked.wait())
    state.draining = True
    if state.in_flight:
        _log.info("ending: %d requests are in progress", state.in_flight)
    await _first(state.idle(options.drain_seconds), hurried.wait())
    answered = not state.in_flight
    if not answered:
        _log.error("%d requests were not answered before the end", state.in_flight)
        await asyncio.to_thread(models.close)  # they get an answer that says so
        await state.idle(_LAST_SECONDS)
    server.should_exit = True
    await serving
    return answered


async def _first(*waits: Any) -> None:
    """Return when the first of `waits` is done; coroutines are cancelled then, tasks go on."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task, wait in zip(tasks, waits, strict=True):
        if task is not wait:
            task.cancel()
