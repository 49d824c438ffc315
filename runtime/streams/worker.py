"""The workers of `runtime.streams.process`, which read a webcam or URL each, and the server that forks them.

A message is four bytes of length, then JSON. Frames lie in memory that both processes share.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.streams.capture import Capture, open_here
from runtime.streams.url import RefusedError, StreamError, cannot_open, ffmpeg_reason

LEAVE_S = 1.0
"""The time that a worker has to close its camera."""
PATIENCE = 2.0
"""The decoder's own time limits are this many times the program's, so that the program's come first."""


def send(connection: socket.socket, message: dict[str, Any], memory: int | None = None) -> None:
    """Send a message, and with it a file descriptor `memory`."""
    data = json.dumps(message).encode()
    socket.send_fds(connection, [len(data).to_bytes(4, "big")], [] if memory is None else [memory])
    connection.sendall(data)


def receive(connection: socket.socket) -> tuple[dict[str, Any] | None, int | None]:
    """A message and the file descriptor that came with it; None for a message where the other process has ended."""
    head, memories, _, _ = socket.recv_fds(connection, 4, 1)
    data = b""
    length = int.from_bytes(head, "big")
    while head and len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            break
        data += part
    complete = bool(head) and len(data) == length
    return (json.loads(data) if complete else None), (memories[0] if memories else None)


def tend(control: int) -> None:
    """The fork server: forks a worker for each connection that comes through the socket `control`, until it closes."""
    # The program itself handles these signals; when it ends, its sockets close. SIGCHLD: workers leave no zombies.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
    server = socket.socket(fileno=control)
    while True:
        decoder, connections, _, _ = socket.recv_fds(server, 1, 1)
        if not decoder:
            return
        if decoder == b"p":
            with suppress(ModuleNotFoundError):  # the worker reports it, where the user reads it
                importlib.import_module("av")
        if os.fork() == 0:
            server.close()
            try:
                _serve(socket.socket(fileno=connections[0]))
            finally:
                _die()
        os.close(connections[0])


def _die() -> None:
    """End this process at once: nothing needs a cleanup, and a thread may hang inside a decoder."""
    os.kill(os.getpid(), signal.SIGKILL)


def _serve(connection: socket.socket) -> None:
    requests: SimpleQueue[dict[str, Any] | None] = SimpleQueue()

    def listen() -> None:
        try:
            while (request := receive(connection)[0]) is not None:
                requests.put(request)
        finally:  # the program closed the capture, or ended
            requests.put(None)
            time.sleep(LEAVE_S)
            _die()  # even where a read hangs

    threading.Thread(target=listen, daemon=True).start()
    first = requests.get()
    if first is None:
        return
    os.environ.update(first["environment"])
    try:
        capture = _open(first)
    except Exception as error:  # a decoder may raise anything, which the user should read
        shown = str(error) if isinstance(error, StreamError) else f"{first['shown']}: {type(error).__name__}: {error}"
        send(connection, {"error": shown, "refused": isinstance(error, RefusedError)})
        return
    send(connection, {"fps": capture.fps, "count": capture.count})
    memory = np.empty(0, np.uint8)
    while (request := requests.get()) is not None:
        try:
            if request["do"] == "skip":
                send(connection, {"end": not capture.skip()})
            else:
                memory = _send_frame(connection, capture, memory)
        except OSError:
            break  # the program has ended
        except Exception as error:  # as above
            shown = str(error) if isinstance(error, StreamError) else f"{first['shown']}: {error}"
            send(connection, {"error": shown, "refused": False})
    capture.close()  # this tells the camera: some allow few sessions, and keep a lost one for a minute


def _open(request: dict[str, Any]) -> Capture:
    """Open the capture. Where that fails, the error quotes what FFmpeg printed. Afterwards all output is discarded."""
    os.environ["OPENCV_FFMPEG_LOGLEVEL"] = "16"  # errors
    log = os.memfd_create("log")
    os.dup2(log, 1)  # OpenCV's version of FFmpeg's messages
    os.dup2(log, 2)  # FFmpeg's own
    shown, advice, decoder = request["shown"], request["advice"], request["decoder"]
    try:
        capture = open_here(request["target"], shown, advice, decoder, PATIENCE * request["timeout_s"])
    except StreamError:
        reason = ffmpeg_reason(os.pread(log, 1 << 16, 0).decode(errors="replace"))
        if decoder == "opencv" and reason:
            raise cannot_open(shown, reason, advice) from None
        raise
    finally:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        os.close(log)
    return capture


def _send_frame(connection: socket.socket, capture: Capture, memory: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Send the next frame through the shared `memory`, or through new memory where that is too small; returns it."""
    image = capture.read()
    if image is None:
        send(connection, {"end": True})
        return memory
    descriptor = None
    if memory.nbytes < image.nbytes:
        descriptor = os.memfd_create("frame")
        os.ftruncate(descriptor, image.nbytes)
        memory = np.frombuffer(mmap.mmap(descriptor, image.nbytes), np.uint8)
    shared = memory[: image.nbytes].reshape(image.shape)
    if image.ctypes.data != shared.ctypes.data:
        np.copyto(shared, image)
    header = {"end": False, "hw": image.shape[:2], "position": capture.position_s()}
    try:
        send(connection, header, descriptor)
    finally:
        if descriptor is not None:
            os.close(descriptor)
    capture.recycle(shared)  # to decode the next frame right into it: the program asks for one when it has copied this
    return memory
