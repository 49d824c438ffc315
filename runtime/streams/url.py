"""URLs of cameras: options to open them with FFmpeg, and the meaning of its errors."""

from __future__ import annotations

import os
import re
import threading

import cv2

from isodet.errors import IsodetError


class StreamError(IsodetError, ValueError):
    """A source that cannot be opened, that gives no frame, or whose connection is lost; the message names it."""


class RefusedError(StreamError):
    """A source that refuses the user or the password. Do not try again: cameras lock accounts after a few attempts."""


def is_url(target: str | int) -> bool:
    return isinstance(target, str) and "://" in target


def url_options(url: str, quick: bool) -> dict[str, str]:
    """FFmpeg's options for opening `url`. `quick`: do not read frames first to learn the rate.

    FFmpeg would read 25 of them: at 5 frames/s, the first frame would be 5 seconds old when it is handed out.
    """
    if not url.lower().startswith(("rtsp://", "rtsps://")):
        return {}
    return {"rtsp_transport": "tcp", **({"probesize": "32", "fpsprobesize": "0"} if quick else {})}


def cannot_open(shown: str, reason: str, advice: str) -> StreamError:
    """The error for a source that cannot be opened, by FFmpeg's `reason`; `advice` is for reasons not known here."""
    known = (
        (r"\b(401|403)\b", RefusedError, "are the user and the password right, and may they see this stream?"),
        (r"\b404\b", StreamError, "the camera answers, but has no such stream: is the path right?"),
        (r"(?i)connection refused", StreamError, f"nothing listens there; {advice}"),
        ("", StreamError, advice),
    )
    error, advice = next((error, advice) for pattern, error, advice in known if re.search(pattern, reason))
    return error(f"{shown}: cannot be opened ({without_password(reason)}); {advice}")


def ffmpeg_reason(log: str) -> str:
    """The last of FFmpeg's messages in `log`; '' where there is none."""
    lines = [line for line in log.splitlines() if re.match(r"\[OPENCV:FFMPEG|\[\w+ @ ", line)]
    lines = [re.sub(r"^(\[[^\]]*\] *)+", "", line) for line in lines]
    reason = re.sub(r"^.* failed: ", "", lines[-1]).strip() if lines else ""
    return re.sub(r"^(\d{3}) \((.*)\)$", r"\1 \2", reason)  # 404 (Not Found)


def without_password(url: str) -> str:
    """`url` without its password, to be shown. In doubt it leaves out too much: passwords may contain @ and /."""
    url = re.sub(r"(://[^/@:]*):.*@", r"\1:...@", url)
    return re.sub(r"(?i)((?:pass|password|passwd|pwd|token|secret)=)[^&#/\s]*", r"\1...", url)


_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
_environment = threading.Lock()


def opencv_url(target: str, timeout_s: float) -> cv2.VideoCapture:
    """`cv2.VideoCapture` of a URL, with settings for cameras: one thread, few frames read ahead, time limits."""
    limit = max(1, round(timeout_s * 1000))  # OpenCV's own limits are 30 s
    # One thread: each further one delays the video by a frame, and OpenCV would start one for each core.
    settings = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit, cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit, cv2.CAP_PROP_N_THREADS, 1]
    user_value = os.environ.get(_OPTIONS)  # name;value|name;value
    user_options = dict(part.split(";", 1) for part in (user_value or "").split("|") if ";" in part)
    for quick in (True, False):
        options = {**url_options(target, quick), **user_options}
        with _environment:
            try:
                if options:
                    os.environ[_OPTIONS] = "|".join(f"{name};{value}" for name, value in options.items())
                capture = cv2.VideoCapture(target, cv2.CAP_FFMPEG, settings)
            finally:
                if user_value is None:
                    os.environ.pop(_OPTIONS, None)
                else:
                    os.environ[_OPTIONS] = user_value
        if not capture.isOpened() or capture.get(cv2.CAP_PROP_FRAME_WIDTH) > 0 or not url_options(target, quick):
            break
        capture.release()  # the first packet has no size: look at more packets
    return capture
