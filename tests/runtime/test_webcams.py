"""Webcams that hang, crash or are not there, read in processes of their own; the devices are stand-ins."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest

from runtime import StreamError, StreamOptions, Streams
from runtime.streams import process as stream_process
from runtime.streams.open import open_source
from tests.runtime.cameras import QUICK, until, workers
from tests.runtime.webcam import ABSENT, CRASHES, OPENING_HANGS, READING_HANGS, WELL, process

pytestmark = [
    pytest.mark.usefixtures("no_thread_is_left", "devices"),
    pytest.mark.skipif(not stream_process.possible(), reason="webcams have no process of their own on this system"),
]


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Those of tests/runtime/webcam.py, in every process that reads one."""
    plugged = "from tests.runtime.webcam import plug_in; plug_in(); from isodet"
    program = stream_process._PROGRAM.replace("from isodet", plugged)
    assert program != stream_process._PROGRAM
    server = stream_process._ForkServer()
    monkeypatch.setattr(stream_process, "_PROGRAM", program)
    monkeypatch.setattr(stream_process, "_server", server)
    yield
    server.close()


def test_a_webcam_is_read_in_a_process_of_its_own() -> None:
    source = open_source("/dev/video0", timeout_s=60)
    assert (source.name, source.kind, source.live, source.count, source.fps) == ("webcam0", "webcam", True, None, 25.0)
    frames = iter(source)
    first = next(frames).image
    assert first.shape == (64, 96, 3) and [process(first)] == workers() != [os.getpid()]
    source.recycle(first)
    assert next(frames).image is first
    assert isinstance(frames, Generator)
    frames.close()
    until(lambda: not workers())
    with pytest.raises(StreamError, match=r"webcam 4: cannot be opened; is it plugged in, free"):
        open_source(ABSENT, timeout_s=60)
    with pytest.raises(StreamError, match=r"webcam 1: does not answer within 0\.5 s; is it plugged in, free"):
        open_source(OPENING_HANGS, timeout_s=0.5)
    until(lambda: not workers())


@pytest.mark.parametrize("number", [OPENING_HANGS, READING_HANGS])
def test_a_webcam_that_hangs_is_ended_and_opened_again(number: int, caplog: pytest.LogCaptureFixture) -> None:
    """As often as it takes: no read is left behind, neither while frames are read nor when they are not any more."""
    with Streams([number, WELL], StreamOptions(stall_s=0.5, **QUICK)) as reading:
        for frame in reading:
            state = reading.states[0]
            if frame.source == 1 and state.reconnects >= 4:
                break
    assert "webcam" in str(state.error) and "0.5 s" in str(state.error)
    until(lambda: not workers())
    assert "left alone" not in caplog.text


def test_a_webcam_whose_driver_crashes_harms_nobody() -> None:
    with Streams([CRASHES, WELL], StreamOptions(**QUICK)) as reading:
        for frame in reading:
            state = reading.states[0]
            if frame.source == 1 and state.reconnects >= 2:
                break
    assert state.frames >= 3 and "webcam 3: the process that decodes it has ended" in str(state.error)
    until(lambda: not workers())
