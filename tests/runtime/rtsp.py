"""Real RTSP cameras for tests (`tests/runtime/rtsp_server.py`), and what can be read off their pictures."""

from __future__ import annotations

import queue
import socket
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import IO

import pytest

from runtime.images.image import Image

PYTHON = "/usr/bin/python3"
PACKAGES = (
    "gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad "
    "gstreamer1.0-plugins-ugly gstreamer1.0-libav python3-gi"
)


def code(image: Image) -> tuple[int, float]:
    """The number of a camera's picture, and when it was made, in seconds since 1970."""
    blocks = image[4:16:8, 4 : 32 * 8 : 8, 1].reshape(-1) > 125
    value = int("".join("01"[int(bit)] for bit in blocks), 2)
    now = time.time()
    made = value & ((1 << 40) - 1)
    high = int(now * 1000) >> 40
    return value >> 40, (high << 40 | made) / 1000


class RtspServer:
    """Cameras /h264, /h265 and /mjpeg on one port. Skips the test where the system has no RTSP server."""

    def __init__(self, fps: int = 5, user: str = "", password: str = "") -> None:
        if not Path(PYTHON).exists():
            pytest.skip(f"no {PYTHON}, which an RTSP server for tests is started with")
        command = [PYTHON, str(Path(__file__).with_name("rtsp_server.py")), str(fps), *[user, password] * bool(user)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None and self._process.stderr is not None
        port = self._process.stdout.readline()
        if not port:
            reason = (self._process.stderr.read().strip() or "?").splitlines()[-1]
            self.stop()
            pytest.skip(f"no RTSP server here ({reason}); on Debian: apt-get install {PACKAGES}")
        self.port = int(port)
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            self._lines.put(line.strip())

    def url(self, codec: str = "h264", login: str = "") -> str:
        return f"rtsp://{login}127.0.0.1:{self.port}/{codec}"

    def tell(self, order: str) -> None:
        """stall: no more frames, while connections stay; run: go on."""
        assert self._process.stdin is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()

    def watched(self) -> None:
        """Wait until one viewer more has begun to watch."""
        self._next("play")

    def step(self, codec: str, count: int) -> int:
        """Make so many frames more of a camera that stalls; gives the number of its latest (`code`)."""
        self.tell(f"step {codec} {count}")
        return int(self._next("frame")[1])

    def _next(self, word: str) -> list[str]:
        """What the server says next that begins with `word`."""
        while True:
            line = self._lines.get(timeout=60).split()
            if line[0] == word:
                return line

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> RtspServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.stop()


class Silent:
    """A port that takes connections and never answers."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.url = f"rtsp://127.0.0.1:{self._socket.getsockname()[1]}/x"

    def close(self) -> None:
        self._socket.close()


class Relay:
    """Hands on what a server and its viewers say; `changed` in the server's words becomes `to`, of the same length."""

    def __init__(self, port: int, changed: bytes, to: bytes) -> None:
        assert len(changed) == len(to)
        self._changed, self._to, self._target = changed, to, port
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port, self.times = self._socket.getsockname()[1], 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                viewer = self._socket.accept()[0]
            except OSError:
                return  # closed
            server = socket.create_connection(("127.0.0.1", self._target))
            for one, other, back in ((viewer, server, False), (server, viewer, True)):
                threading.Thread(target=self._hand_on, args=(one, other, back), daemon=True).start()

    def _hand_on(self, one: socket.socket, other: socket.socket, back: bool) -> None:
        try:
            while data := one.recv(1 << 16):
                if back:
                    self.times += data.count(self._changed)
                    data = data.replace(self._changed, self._to)
                other.sendall(data)
            other.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # one of the two has gone

    def close(self) -> None:
        self._socket.close()


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
