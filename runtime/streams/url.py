"""Addresses of cameras: how FFmpeg is to open them, and what its refusals mean."""

from __future__ import annotations

import os
import re
import threading

import cv2

from isodet.errors import IsodetError


class StreamError(IsodetError, ValueError):
    """A source that cannot be opened, that gives no frame, or that went away; the message names it."""


class RefusedError(StreamError):
    """A source that refuses the user or the password. Asking again does not help, and cameras lock accounts for it."""


def is_url(target: str | int) -> bool:
    return isinstance(target, str) and "://" in target


def url_options(url: str, quick: bool) -> dict[str, str]:
    """FFmpeg's options for opening `url`. `quick`: do not look at frames to learn the rate.

    FFmpeg would look at 25 of them, which are old when they are handed out: 5 seconds at 5 frames/s.
    """
    if not url.lower().startswith(("rtsp://", "rtsps://")):
        return {}
    return {"rtsp_transport": "tcp", **({"probesize": "32", "fpsprobesize": "0"} if quick else {})}


def cannot_open(shown: str, reason: str, advice: str) -> StreamError:
    """The error of a source that cannot be opened for `reason`, in FFmpeg's words."""
    advices = {
        r"\b(401|403)\b": "are the user and the password right, and may they see this stream?",
        r"\b404\b": "the camera answers, but has no such stream: is the path right?",
        r"(?i)connection refused": f"nothing listens there; {advice}",
    }
    advice = next((better for pattern, better in advices.items() if re.search(pattern, reason)), advice)
    error = RefusedError if re.search(r"\b(401|403)\b", reason) else StreamError
    return error(f"{shown}: cannot be opened ({without_password(reason)}); {advice}")


def ffmpeg_reason(log: str) -> str:
    """What went wrong, from FFmpeg's messages: the last of them; empty where there is none."""
    lines = [line for line in log.splitlines() if re.match(r"\[OPENCV:FFMPEG|\[\w+ @ ", line)]
    lines = [re.sub(r"^(\[[^\]]*\] *)+", "", line) for line in lines]
    reason = re.sub(r"^.* failed: ", "", lines[-1]).strip() if lines else ""
    return re.sub(r"^(\d{3}) \((.*)\)$", r"\1 \2", reason)  # 404 (Not Found)


def without_password(url: str) -> str:
    """`url` as it may be shown and written down. In doubt too much is left out: passwords may have @ and / in them."""
    url = re.sub(r"(://[^/@:]*):.*@", r"\1:...@", url)
    return re.sub(r"(?i)((?:pass|password|passwd|pwd|token|secret)=)[^&#/\s]*", r"\1...", url)


_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
_environment = threading.Lock()


def opencv_url(target: str, timeout_s: float) -> cv2.VideoCapture:
    """`cv2.VideoCapture` of a URL, as a camera wants it: one thread, little looked at beforehand, limited in time."""
    limit = max(1, round(timeout_s * 1000))  # OpenCV's own limits are 30 s
    # One thread: with several, each holds a frame back, and OpenCV takes as many as there are cores.
    how = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit, cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit, cv2.CAP_PROP_N_THREADS, 1]
    users = os.environ.get(_OPTIONS)
    for quick in (True, False):
        options = {**url_options(target, quick), **_pairs(users or "")}
        with _environment:
            try:
                if options:
                    os.environ[_OPTIONS] = "|".join(f"{name};{value}" for name, value in options.items())
                capture = cv2.VideoCapture(target, cv2.CAP_FFMPEG, how)
            finally:
                if users is None:
                    os.environ.pop(_OPTIONS, None)
                else:
                    os.environ[_OPTIONS] = users
        if not capture.isOpened() or capture.get(cv2.CAP_PROP_FRAME_WIDTH) > 0 or not url_options(target, quick):
            break
        capture.release()  # the first packet did not tell the size: look at more
    return capture


def _pairs(options: str) -> dict[str, str]:
    """A user's own `OPENCV_FFMPEG_CAPTURE_OPTIONS`: name;value|name;value."""
    parts = [part.split(";", 1) for part in options.split("|")]
    return {part[0]: part[1] for part in parts if len(part) == 2}
