"""The other side of `runtime.streams.process`: processes that read a webcam or URL each, and the one that forks them.

Messages are JSON behind four bytes of length. Frames lie in memory that both sides see.
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

from runtime.streams.capture import Capture, open_here
from runtime.streams.url import RefusedError, StreamError, cannot_open, ffmpeg_reason

LEAVE_S = 1.0
"""What a worker has to take leave of its camera."""
PATIENCE = 2.0
"""The decoder's own time limits are so many times those of the program, which is to be the one that decides."""


def send(connection: socket.socket, message: dict[str, Any], memory: int | None = None) -> None:
    """Send a message, and with it the file descriptor `memory`."""
    data = json.dumps(message).encode()
    socket.send_fds(connection, [len(data).to_bytes(4, "big")], [] if memory is None else [memory])
    connection.sendall(data)


def receive(connection: socket.socket) -> tuple[dict[str, Any] | None, int | None]:
    """A message and the file descriptor that came with it; None where the other side has gone."""
    head, memories, _, _ = socket.recv_fds(connection, 4, 1)
    data = b""
    length = int.from_bytes(head, "big")
    while head and len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            break
        data += part
    whole = bool(head) and len(data) == length
    return (json.loads(data) if whole else None), (memories[0] if memories else None)


def tend(control: int) -> None:
    """The fork server: a worker for each connection that comes through the socket `control`, until that is closed."""
    # Ctrl-C and the end of the session are the program's to decide about; when it goes, its sockets close.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # workers leave no zombies
    server = socket.socket(fileno=control)
    while True:
        decoder, connections, _, _ = socket.recv_fds(server, 1, 1)
        if not decoder:
            return
        if decoder == b"p":
            with suppress(ModuleNotFoundError):  # told by the worker, where the user reads it
                importlib.import_module("av")
        if os.fork() == 0:
            server.close()
            try:
                _serve(socket.socket(fileno=connections[0]))
            finally:
                _die()
        os.close(connections[0])


def _die() -> None:
    """End this process at once: nothing in it needs an orderly end, and a thread may hang inside a decoder."""
    os.kill(os.getpid(), signal.SIGKILL)


def _serve(connection: socket.socket) -> None:
    requests: SimpleQueue[dict[str, Any] | None] = SimpleQueue()

    def listen() -> None:
        try:
            while (request := receive(connection)[0]) is not None:
                requests.put(request)
        finally:  # the program let the camera go, or went itself
            requests.put(None)
            time.sleep(LEAVE_S)
            _die()  # a read that hangs is not waited for any longer

    threading.Thread(target=listen, daemon=True).start()
    first = requests.get()
    if first is None:
        return
    os.environ.update(first["environment"])
    try:
        capture = _open(first)
    except StreamError as error:
        send(connection, {"error": str(error), "refused": isinstance(error, RefusedError)})
        return
    except Exception as error:  # told to the user as it is; a decoder may raise anything
        send(connection, {"error": f"{first['shown']}: {type(error).__name__}: {error}", "refused": False})
        return
    send(connection, {"fps": capture.fps, "count": capture.count})
    frames = _Frames(connection, capture)
    while (request := requests.get()) is not None:
        try:
            if request["do"] == "skip":
                send(connection, {"end": not capture.skip()})
            else:
                frames.send()
        except OSError:
            break  # nobody is there any more
        except Exception as error:  # as above
            shown = str(error) if isinstance(error, StreamError) else f"{first['shown']}: {error}"
            send(connection, {"error": shown, "refused": False})
    capture.close()  # tells the camera, too: some have few sessions, and keep one for a minute


def _open(request: dict[str, Any]) -> Capture:
    """Open the capture; what FFmpeg prints meanwhile is the reason where it fails, and later it prints nowhere."""
    os.environ["OPENCV_FFMPEG_LOGLEVEL"] = "16"  # errors
    log = os.memfd_create("log")
    os.dup2(log, 1)  # OpenCV's version of FFmpeg's messages goes here, FFmpeg's own
    os.dup2(log, 2)  # here
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


class _Frames:
    """Sends frames of `capture`, through memory that grows when frames do."""

    def __init__(self, connection: socket.socket, capture: Capture) -> None:
        self._connection, self._capture = connection, capture
        self._memory = np.empty(0, np.uint8)

    def send(self) -> None:
        image = self._capture.read()
        if image is None:
            send(self._connection, {"end": True})
            return
        new = None
        if self._memory.nbytes < image.nbytes:
            new = os.memfd_create("frame")
            os.ftruncate(new, image.nbytes)
            self._memory = np.frombuffer(mmap.mmap(new, image.nbytes), np.uint8)
        place = self._memory[: image.nbytes].reshape(image.shape)
        if image.ctypes.data != place.ctypes.data:
            np.copyto(place, image)
        header = {"end": False, "hw": image.shape[:2], "position": self._capture.position_s()}
        try:
            send(self._connection, header, new)
        finally:
            if new is not None:
                os.close(new)
        # The next frame is decoded right into it: the program asks for one after it has copied this one.
        self._capture.recycle(place)
