"""Webcams and URLs, each read in a process of its own, so that a hang or a crash there harms nothing else.

In one process, FFmpeg inside OpenCV opens one capture or writer at a time: a camera that does not answer would block
the others, and the videos being written. Python cannot end a thread inside a decoder or driver, but a process it can.
"""

from __future__ import annotations

import atexit
import json
import mmap
import os
import select
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock
from typing import Any

import numpy as np

from runtime.images.image import Image
from runtime.streams.capture import Capture, DecoderName
from runtime.streams.url import RefusedError, StreamError
from runtime.streams.worker import LEAVE_S, receive, send

_POLL_MS = 50
"""A wait for a frame looks this often whether it is cancelled."""
_NO_FRAME = "gives no frame for {:g} s"

_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1])\n"
    "from isodet.runtime.streams.worker import tend; tend({fd})"
)


def possible() -> bool:
    """Whether a worker can be started: not in a program that was packed into one file, which has no Python."""
    return bool(sys.executable) and not getattr(sys, "frozen", False) and hasattr(os, "memfd_create")


class ProcessCapture(Capture):
    """A capture whose decoder runs in a process of its own, a worker.

    Raises `StreamError` when opening or a frame takes longer than `timeout_s`. `cancelled`, once set, ends every wait.
    """

    def __init__(
        self, target: str | int, shown: str, advice: str, decoder: DecoderName, timeout_s: float, cancelled: Event
    ) -> None:
        self._shown, self._timeout_s, self._cancelled = shown, timeout_s, cancelled
        self._memory: mmap.mmap | None = None
        self._spare: Image | None = None
        self._position: float | None = None
        self._hangs = False
        self._socket = _server.connect(decoder)
        request = {"target": target, "shown": shown, "advice": advice, "decoder": decoder, "timeout_s": timeout_s}
        environment = {name: value for name, value in os.environ.items() if name.startswith("OPENCV_")}
        try:
            answer = self._ask({**request, "environment": environment}, f"does not answer within {{:g}} s; {advice}")
        except BaseException:
            self.close()
            raise
        self.fps, self.count = answer["fps"], answer["count"]

    def read(self) -> Image | None:
        answer = self._ask({"do": "read"}, _NO_FRAME)
        if answer["end"]:
            return None
        self._position = answer["position"]
        shape = (answer["hw"][0], answer["hw"][1], 3)
        image, self._spare = self._spare, None
        if image is None or image.shape != shape:
            image = np.empty(shape, np.uint8)
        assert self._memory is not None  # it came with the first frame
        # This copies: the worker decodes the next frame into the same memory.
        np.copyto(image, np.frombuffer(self._memory, np.uint8, image.size).reshape(shape))
        return image

    def skip(self) -> bool:
        return not self._ask({"do": "skip"}, _NO_FRAME)["end"]

    def position_s(self) -> float | None:
        return self._position

    def recycle(self, image: Image) -> None:
        self._spare = image

    def close(self) -> None:
        """Have the worker close its camera and end; one that hangs is killed soon. A second call does nothing."""
        with suppress(OSError):  # the worker has ended already, or this is the second call
            self._socket.shutdown(socket.SHUT_WR)  # reaches the worker even where a fork holds a copy of the socket
            if not self._hangs:  # wait until the camera is free: some allow few connections
                self._socket.settimeout(LEAVE_S)
                while self._socket.recv(1 << 16):
                    pass
        self._socket.close()

    def _ask(self, request: dict[str, Any], late: str) -> dict[str, Any]:
        """The worker's answer. Raises its error, or a `StreamError` with the text `late` after `timeout_s`."""
        try:
            send(self._socket, request)
            self._wait(late)
            answer, memory = receive(self._socket)
        except OSError:
            answer, memory = None, None
        if answer is None:
            raise StreamError(f"{self._shown}: the process that decodes it has ended")
        if memory is not None:
            try:
                self._memory = mmap.mmap(memory, 0, prot=mmap.PROT_READ)
            finally:
                os.close(memory)
        if "error" in answer:
            raise (RefusedError if answer["refused"] else StreamError)(answer["error"])
        return answer

    def _wait(self, late: str) -> None:
        limit = time.monotonic() + self._timeout_s
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        self._hangs = True
        while not poll.poll(_POLL_MS):
            if self._cancelled.is_set():
                raise StreamError(f"{self._shown}: is not read any more")
            if time.monotonic() >= limit:
                raise StreamError(f"{self._shown}: {late.format(self._timeout_s)}")
        self._hangs = False


class _ForkServer:
    """A process that has imported the decoders, and forks a worker for each capture: fast, and with shared code.

    Forking this program itself would copy the locks that its threads hold at that moment.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def connect(self, decoder: DecoderName) -> socket.socket:
        """Start a worker, and return the connection to it."""
        connection, worker_end = socket.socketpair()
        with worker_end, self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            assert self._socket is not None
            try:
                socket.send_fds(self._socket, [decoder[:1].encode()], [worker_end.fileno()])
            except OSError:  # the server ended just now
                self._start()
                socket.send_fds(self._socket, [decoder[:1].encode()], [worker_end.fileno()])
        return connection

    def _start(self) -> None:
        self.close()
        self._socket, server_end = socket.socketpair()
        # The program's own path, to find its packages, and isodet's folder, which that path may no longer hold.
        path = [*sys.path, str(Path(__file__).resolve().parents[2])]
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # it only moves frames, and must fork
        with server_end:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _PROGRAM.format(fd=server_end.fileno()), json.dumps(path)],
                pass_fds=(server_end.fileno(),), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                env={**os.environ, **one_thread}, start_new_session=True,
            )  # fmt: skip

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.wait()  # it ends as soon as its connection is closed


_server = _ForkServer()


def _after_fork() -> None:
    """In a fork of this program, start a new server when one is needed."""
    global _server
    _server = _ForkServer()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(lambda: _server.close())
