"""Cameras for tests: an HTTP server of JPEG frames that can die and come back, and captures that do as told."""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runtime.images.image import Image
from runtime.streams import process as stream_process
from runtime.streams import streams
from runtime.streams.source import Origin, Source, of_capture

QUICK = {"backoff_s": 0.01, "backoff_max_s": 0.02}


def picture(i: int, hw: tuple[int, int] = (64, 96)) -> Image:
    return np.full((*hw, 3), (60, 200 + i % 50, 20), np.uint8)


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for a condition that other threads bring about; a busy machine gets its time."""
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.005)


def workers() -> list[int]:
    """The processes that read webcams and URLs for this one."""
    process = stream_process._server._process
    assert process is not None
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


class HttpCamera:
    """Sends JPEG frames as network cameras do (multipart/x-mixed-replace) on one port, as often as it is started."""

    def __init__(self, hw: tuple[int, int] = (64, 96)) -> None:
        self.hw, self.port, self.sent, self.connections = hw, 0, 0, 0
        self._server: ThreadingHTTPServer | None = None
        self._alive = threading.Event()

    @property
    def url(self) -> str:
        return f"http://user:secret@127.0.0.1:{self.port}/video"

    def start(self) -> None:
        camera = self
        alive = self._alive = threading.Event()
        alive.set()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                camera.connections += 1
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                try:
                    while alive.is_set():
                        data = cv2.imencode(".jpg", picture(camera.sent, camera.hw))[1].tobytes()
                        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                        self.wfile.write(head.encode() + data + b"\r\n")
                        camera.sent += 1
                        time.sleep(0.01)
                except OSError:
                    return  # the reader has gone

            def log_message(self, format: str, *args: object) -> None:
                return

        ThreadingHTTPServer.allow_reuse_address = True
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def die(self) -> None:
        """Cut the connections and listen no more."""
        self._alive.clear()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class FakeCapture:
    """A `runtime.streams.capture.Capture` of `count` frames; `at` says what happens before which frame is read."""

    fps = 10.0

    def __init__(
        self, count: int | None, at: dict[int, Callable[[], object]] | None = None, frames: int | None = None,
        sizes: dict[int, tuple[int, int]] | None = None,
    ) -> None:  # fmt: skip
        self.count, self.frames, self.at, self.sizes = count, count if frames is None else frames, at or {}, sizes or {}
        self.reads = self.skips = self.closed = 0
        self.hw = (4, 6)
        self.spare: list[Image] = []
        self.arrays: set[int] = set()
        self._kept: list[Image] = []  # so that no two arrays share an id

    def read(self) -> Image | None:
        number = self.reads + self.skips
        if number in self.at:
            self.at[number]()
        if self.frames is not None and number >= self.frames:
            return None
        self.hw = self.sizes.get(number, self.hw)
        image = self.spare.pop() if self.spare else np.empty((*self.hw, 3), np.uint8)
        if id(image) not in self.arrays:
            self.arrays.add(id(image))
            self._kept.append(image)
        image[:] = number % 256
        self.reads += 1
        return image

    def skip(self) -> bool:
        if self.frames is not None and self.reads + self.skips >= self.frames:
            return False
        self.skips += 1
        return True

    def position_s(self) -> float | None:
        return None

    def recycle(self, image: Image) -> None:
        self.spare.append(image)

    def close(self) -> None:
        self.closed += 1


def file_of(capture: FakeCapture, name: str = "clip") -> Source:
    return of_capture(capture, name, "video", name)


def video(path: Path, frames: Iterable[Image]) -> Path:
    """Writes frames of one size, 10 a second: MJPEG as .avi, MPEG-4 as .mp4. Makes the folder."""
    frames = list(frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = cv2.VideoWriter.fourcc(*("MJPG" if path.suffix == ".avi" else "mp4v"))
    writer = cv2.VideoWriter(str(path), codec, 10.0, frames[0].shape[1::-1])
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def clip(path: Path, count: int = 12) -> Path:
    return video(path, map(picture, range(count)))


def object_frame(label: int, hw: tuple[int, int] = (64, 96)) -> Image:
    """The tiny model of conftest.py finds two objects of `label` in it, scores 0.98 and 0.49."""
    return np.full((*hw, 3), (label, 250, 20), np.uint8)


def object_clip(path: Path, labels: list[int]) -> Path:
    return video(path, map(object_frame, labels))


def turned_by_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Writes the matrix into an .mp4 by which phones turn videos: 1, 0, 0, 1 turns nothing."""
    data, upright = path.read_bytes(), struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    place = data.index(upright, data.index(b"tkhd"))
    a, b, c, d = (65536 * v for v in matrix)
    path.write_bytes(data[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[place + 36 :])


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def cameras(monkeypatch: pytest.MonkeyPatch, *captures: Callable[[], FakeCapture]) -> list[FakeCapture]:
    """Webcams 0, 1, ... that are fakes; gives the list of those opened, which grows. A capture may refuse."""
    opened: list[FakeCapture] = []

    def open_fake(
        origin: Origin, on_broken: object, decoder: str, every: int, timeout_s: float, cancelled: threading.Event
    ) -> Source:
        capture = captures[int(str(origin))]()
        opened.append(capture)
        return of_capture(capture, f"webcam{origin}", "webcam", f"webcam {origin}", every=every, origin=origin)

    monkeypatch.setattr(streams, "open_source", open_fake)
    return opened
