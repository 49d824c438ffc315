"""Cameras that speak RTSP, through every decoder of URLs: many, dead, slow, silent, refusing and coming back."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import StreamError, StreamOptions, Streams
from runtime.streams.capture import DecoderName, RefusedError
from runtime.streams.open import open_source
from tests.processes import python
from tests.runtime.cameras import QUICK, until, workers
from tests.runtime.rtsp import Relay, RtspServer, Silent, code, free_port

pytestmark = pytest.mark.usefixtures("no_thread_is_left")

USER = ("admin", "s3cr3tPW")


@pytest.fixture(scope="module")
def server() -> Iterator[RtspServer]:
    with RtspServer() as server:
        yield server


@pytest.fixture(scope="module")
def guarded() -> Iterator[RtspServer]:
    with RtspServer(5, *USER) as server:
        yield server


@pytest.fixture
def silent() -> Iterator[Silent]:
    silent = Silent()
    yield silent
    silent.close()


def test_sixteen_cameras_run_whatever_others_do(server: RtspServer, silent: Silent, decoder: DecoderName) -> None:
    """None waits for another to open. Those that do not answer hold up nobody, and nobody is told to give no frame."""
    dead = [silent.url, f"rtsp://127.0.0.1:{free_port()}/x"]
    sources = [*dead, *[server.url(codec) for codec in ("h264", "h264", "h265", "mjpeg")] * 4]
    seen: set[int] = set()
    with Streams(sources, StreamOptions(decoder=decoder, stall_s=60)) as reading:
        for frame in reading:
            seen.add(frame.source)
            if len(seen) == 16:
                break
        states = reading.states
    assert seen == set(range(2, 18)) and all(s.error is None and s.reconnects == 0 for s in states[2:])
    assert states[0].state == "connecting" and states[0].error is None  # still waiting for its first answer
    assert "Connection refused" in str(states[1].error)


@pytest.mark.parametrize("codec", ["h264", "h265", "mjpeg"])
def test_frames_are_of_now(decoder: DecoderName, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first on, and however many cores OpenCV finds: only the frame whose end the next one tells is held back.

    The camera makes no frame before those made so far are here, so that the machine may be as slow as it is.
    """
    monkeypatch.setenv("OPENCV_FFMPEG_THREADS", "16")  # which would hold 15 frames back
    held, seen = 0 if codec == "mjpeg" else 1, []
    with RtspServer() as server:
        server.tell("stall")
        with Streams([server.url(codec)], StreamOptions(decoder=decoder, keep="all", stall_s=300)) as reading:
            reader = threading.Thread(target=lambda: seen.extend(code(frame.image)[0] for frame in reading))
            reader.start()
            server.watched()
            for count in (12, 1, 1, 1, 1):  # two key frames; FFmpeg would look at 20 frames first
                latest = server.step(codec, count)
                until(lambda latest=latest: latest - held in seen, 120)  # type: ignore[misc]
            reading.stop()
            reader.join()
            assert reading.states[0].reconnects == 0 and reading.states[0].size_hw == (192, 320)
    assert seen == sorted(set(seen)) and seen[-1] == latest - held


def test_a_camera_that_was_opened_long_ago_is_opened_again(server: RtspServer, decoder: DecoderName) -> None:
    """What it sent meanwhile is old; the first frame that is handed out is not."""
    early = open_source(server.url(), decoder=decoder)
    with Streams([server.url()], StreamOptions(decoder=decoder)) as reading:
        for count, frame in enumerate(reading):
            if count == 10:
                seen = code(frame.image)[1]
                break
        # A minute is what building an engine takes, and more than a test has.
        early = dataclasses.replace(early, opened_s=early.opened_s - 60)
        with Streams([early], StreamOptions(decoder=decoder)) as late:
            first = next(iter(late))
    assert code(first.image)[1] >= seen


def test_a_camera_whose_frames_stop(decoder: DecoderName) -> None:
    """It is left after stall_s; the frame that its decoder still had is not handed out as a new one."""
    with RtspServer() as server, Streams([server.url()], StreamOptions(decoder=decoder, stall_s=4, **QUICK)) as reading:
        seen: list[int] = []
        before = last = -1
        for frame in reading:
            seen.append(code(frame.image)[0])
            if len(seen) == 5:
                server.tell("stall")
                last, before = server.step("h264", 0), reading.states[0].reconnects
                threading.Thread(target=go_on, args=(reading, server, before)).start()
            if len(seen) > 5 and reading.states[0].reconnects > before:
                break
        state = reading.states[0]
    assert seen == sorted(set(seen)) and last not in seen and seen[-1] > last
    assert "gives no frame for 4 s" in str(state.error) or "does not answer within 4 s" in str(state.error)


def go_on(reading: Streams, server: RtspServer, reconnects: int) -> None:
    """The camera works again once it was given up."""
    until(lambda: reading.states[0].reconnects > reconnects, 120)
    server.tell("run")


def test_what_a_camera_says_is_in_the_error(
    server: RtspServer, guarded: RtspServer, silent: Silent, decoder: DecoderName
) -> None:
    for url, message in (
        (server.url("nothing"), r"cannot be opened \(.*404 Not Found\); the camera answers, but has no such stream"),
        (f"rtsp://127.0.0.1:{free_port()}/x", r"cannot be opened \(Connection refused\); nothing listens there"),
        (silent.url, r"does not answer within 0\.5 s; is the address right"),
        (guarded.url(login="admin:wr0ng@"), r"\(.*401 Unauthorized.*\); are the user and the password right"),
    ):
        with pytest.raises(StreamError, match=message) as caught:
            open_source(url, decoder=decoder, timeout_s=0.5 if url == silent.url else 30)
        assert isinstance(caught.value, RefusedError) == ("401" in message) and "wr0ng" not in str(caught.value)
    source = open_source(guarded.url(login=":".join(USER) + "@"), decoder=decoder, timeout_s=30)
    assert source.live and source.fps == 5 and next(iter(source)).image.shape == (192, 320, 3)


def test_a_wrong_password_is_not_tried_for_ever(
    server: RtspServer, guarded: RtspServer, decoder: DecoderName, caplog: pytest.LogCaptureFixture
) -> None:
    options = StreamOptions(decoder=decoder, **QUICK)
    with Streams([guarded.url(login="admin:wr0ng@"), server.url()], options) as reading:
        for frame in reading:
            assert frame.source == 1
            if reading.states[0].state == "failed":
                break
        state = reading.states[0]
    assert state.reconnects == 2 and "401 Unauthorized" in str(state.error)
    assert "failed for good" in caplog.text and "wr0ng" not in caplog.text


def test_parameters_that_only_the_stream_tells(server: RtspServer, decoder: DecoderName) -> None:
    """Some cameras leave the picture's size out of their description."""
    relay = Relay(server.port, b"sprop-parameter-sets", b"xxxxx-parameter-sets")
    try:
        source = open_source(f"rtsp://127.0.0.1:{relay.port}/h264", decoder=decoder, timeout_s=60)
        assert next(iter(source)).image.shape == (192, 320, 3) and relay.times > 0
        source.close()
    finally:
        relay.close()


def test_a_decoder_that_crashes_harms_nobody(server: RtspServer, decoder: DecoderName) -> None:
    with Streams([server.url()], StreamOptions(decoder=decoder, **QUICK)) as reading:
        frames = iter(reading)
        first = next(frames)
        for worker in workers():
            os.kill(worker, signal.SIGSEGV)
        later = next(frame for frame in frames if reading.states[0].reconnects)
        assert later.index > first.index and "the process that decodes it has ended" in str(reading.states[0].error)
    until(lambda: not workers())


def test_closing_waits_for_no_camera(server: RtspServer, silent: Silent, caplog: pytest.LogCaptureFixture) -> None:
    """Neither one that is being connected nor one that is read is left behind."""
    reading = Streams([silent.url, server.url()], StreamOptions(stall_s=500))
    next(iter(reading))
    until(lambda: reading.states[0].state == "connecting")
    reading.close()
    assert not caplog.records
    until(lambda: not workers())


PROGRAM = """
import sys
from runtime import Streams
streams = Streams([sys.argv[1]])
frames = iter(streams)
next(frames)
print("frame", flush=True)
"""
"""It leaves a camera that is being read to the end of the interpreter."""


@pytest.mark.parametrize("end", ["", "sys.exit(0)", "raise KeyError('mine')", "import os; os.kill(os.getpid(), 9)"])
def test_a_program_may_end_with_a_camera_open(server: RtspServer, end: str, tmp_path: Path) -> None:
    started = tmp_path / "workers.txt"
    program = PROGRAM + (
        "from pathlib import Path; from runtime.streams import process; pid = process._server._process.pid\n"
        f"Path({str(started)!r}).write_text(f'{{pid}} ' + Path(f'/proc/{{pid}}/task/{{pid}}/children').read_text())\n"
    )
    done = python("-c", program + end, server.url())
    expected = -signal.SIGKILL if "kill" in end else 1 if "raise" in end else 0
    assert done.returncode == expected and done.stdout == "frame\n", done.stderr
    assert ("KeyError: 'mine'" in done.stderr) == ("raise" in end) and done.stderr.count("Error") <= 2
    pids = started.read_text().split()
    assert len(pids) == 2
    until(lambda: not any(alive(pid) for pid in pids))  # nothing of it stays


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
