"""Webcams and URLs read in a process of their own, so that what hangs or crashes there harms nobody else.

FFmpeg inside OpenCV opens one capture or writer at a time in a process: a camera that does not answer would hold up the
others, and the videos being written. A thread inside a decoder or a driver cannot be ended from Python, a process can.
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
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from runtime.images.image import Image
from runtime.streams.capture import DecoderName
from runtime.streams.url import RefusedError, StreamError
from runtime.streams.worker import LEAVE_S, receive, send

_POLL_MS = 50
"""How soon a wait notices that nobody wants its frame any more."""

_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1])\n"
    "from isodet.runtime.streams.worker import tend; tend({fd})"
)


def possible() -> bool:
    """Whether there is a Python to start: not in a program that was packed into one file."""
    return bool(sys.executable) and not getattr(sys, "frozen", False) and hasattr(os, "memfd_create")


class ProcessCapture:
    """A `runtime.streams.capture.Capture` whose decoder runs in another process, forked for it.

    Raises `StreamError` when opening takes `timeout_s`, or a frame does. `cancelled`, once set, ends every wait.
    """

    def __init__(
        self, target: str | int, shown: str, advice: str, decoder: DecoderName, timeout_s: float,
        cancelled: threading.Event,
    ) -> None:  # fmt: skip
        self._shown, self._timeout_s, self._cancelled = shown, timeout_s, cancelled
        self._memory: mmap.mmap | None = None
        self._spare: Image | None = None
        self._position: float | None = None
        self._hangs = False
        self._socket = _server.connect(decoder)
        try:
            options = {name: value for name, value in os.environ.items() if name.startswith("OPENCV_")}
            opened = self._ask(
                {"target": target, "shown": shown, "advice": advice, "decoder": decoder, "timeout_s": timeout_s,
                 "environment": options},
                f"does not answer within {{:g}} s; {advice}",
            )  # fmt: skip
        except BaseException:
            self.close()
            raise
        self.fps: float = opened["fps"]
        self.count: int | None = opened["count"]

    def read(self) -> Image | None:
        answer = self._ask({"do": "read"}, "gives no frame for {:g} s")
        if answer["end"]:
            return None
        self._position = answer["position"]
        shape = (answer["hw"][0], answer["hw"][1], 3)
        image, self._spare = self._spare, None
        if image is None or image.shape != shape:
            image = np.empty(shape, np.uint8)
        assert self._memory is not None  # it came with the first frame
        # A copy: the worker decodes the next frame into the same memory.
        np.copyto(image, np.frombuffer(self._memory, np.uint8, image.size).reshape(shape))
        return image

    def skip(self) -> bool:
        return not self._ask({"do": "skip"}, "gives no frame for {:g} s")["end"]

    def position_s(self) -> float | None:
        return self._position

    def recycle(self, image: Image) -> None:
        self._spare = image

    def close(self) -> None:
        """The worker takes leave of the camera, or is ended soon where it hangs. A second call does nothing more."""
        with suppress(OSError):  # where the worker has gone already, or this is the second call
            self._socket.shutdown(socket.SHUT_WR)  # reaches the worker even where a fork holds a copy
            if not self._hangs:  # so that a camera of few sessions is free for the next
                self._socket.settimeout(LEAVE_S)
                while self._socket.recv(1 << 16):
                    pass
        self._socket.close()

    def _ask(self, request: dict[str, Any], late: str) -> dict[str, Any]:
        """The worker's answer. Raises the error that it met; `late` is the message when the time is over."""
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
    """A process with the decoders imported, which forks a worker for each capture: quick, and their code is there once.

    Forking this program itself would copy its threads' locks as they happen to stand.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def connect(self, decoder: DecoderName) -> socket.socket:
        """One end of a connection whose other end is a new worker's."""
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            assert self._socket is not None
            try:
                socket.send_fds(self._socket, [decoder[:1].encode()], [theirs.fileno()])
            except OSError:  # it ended just now
                self._start()
                socket.send_fds(self._socket, [decoder[:1].encode()], [theirs.fileno()])
        return ours

    def _start(self) -> None:
        self.close()
        self._socket, theirs = socket.socketpair()
        # The program's own path, so that its packages are found, and isodet's folder, wherever that has gone since.
        path = [*sys.path, str(Path(__file__).resolve().parents[2])]
        quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # it only moves frames, and forks without threads
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _PROGRAM.format(fd=theirs.fileno()), json.dumps(path)],
                pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                env={**os.environ, **quiet}, start_new_session=True,
            )  # fmt: skip

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.wait()  # it does nothing but wait for this end of the connection to go


_server = _ForkServer()


def _after_fork() -> None:
    """A fork of this program has a server of its own, if it needs one."""
    global _server
    _server = _ForkServer()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(lambda: _server.close())
