"""Opening sources of frames: a picture, a folder or glob of pictures, a video file, a webcam or a URL."""

from __future__ import annotations

import glob
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

from runtime.images.image import IMAGE_SUFFIXES, ImageError, read_image
from runtime.images.picture_files import is_hidden, is_picture, left_out_text, list_pictures
from runtime.streams.capture import DecoderName, StreamError, open_capture, without_password
from runtime.streams.source import Kind, Origin, Source, SourceFrame, of_capture
from runtime.streams.video_file import undecoded

__all__ = ["StreamError", "expand", "open_source"]

_log = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv")


def camera(origin: Origin) -> int | str | None:
    """The number of a webcam, or a URL; None where `origin` is in the file system."""
    text = fspath(origin) if isinstance(origin, (str, PathLike)) else str(origin)
    device = re.fullmatch(r"/dev/video(\d+)", text)
    if device or isinstance(origin, int) or (text.isdecimal() and not Path(text).exists()):
        return int(device[1] if device else text)
    return text if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) else None


def expand(origin: Origin) -> list[Origin]:
    """The sources that `origin` stands for: `origin` itself, or for a glob also the videos that it matches.

    All pictures of a glob are one source, and each video is one of its own. Raises `StreamError` for a missing file;
    cameras are not contacted.
    """
    if camera(origin) is not None:
        return [origin]
    matches = _matches(str(origin))
    if matches is None:
        if not Path(str(origin)).exists():
            raise _missing(str(origin))
        return [origin]
    videos: list[Origin] = [path for path in matches if not is_picture(path)]
    return [*([origin] if len(videos) < len(matches) else []), *videos]


@dataclass(frozen=True)
class Description:
    """What is known of a source before it is opened; the first fields are those of `Source`."""

    name: str
    kind: Kind
    root: Path | None = None
    """For a video file, its folder."""
    pictures: tuple[Path, ...] = ()
    left_out: tuple[Path, ...] = ()
    """Files of a folder that look like pictures or videos and are not read."""


def describe(origin: Origin) -> Description:
    """What `origin` is, by its form and by the file system. Raises `StreamError` for a missing or empty source."""
    target = camera(origin)
    if isinstance(target, int):
        return Description(f"webcam{target}", "webcam")
    if target is not None:
        host = re.split(r"[/?#]", target.split("://", 1)[1].rpartition("@")[2])[0]  # no passwords in file names
        return Description(re.sub(r"[^A-Za-z0-9.-]+", "_", host) or "stream", "url")
    path, matches = Path(str(origin)), _matches(str(origin))
    if matches is not None:
        pictures, left_out = list_pictures(p for p in matches if is_picture(p))
        if not pictures:
            matched = left_out_text(left_out) if left_out else f"{len(matches)} videos; open them one by one"
            raise StreamError(f"{origin}: matches no pictures, but {matched}")
        root = Path(os.path.commonpath([p.parent.resolve() for p in pictures]))
        return Description(root.name or "pictures", "folder", root, tuple(pictures), tuple(left_out))
    if not path.exists():
        raise _missing(str(origin))
    root = path.resolve()
    if path.is_dir():
        files = [p for p in path.iterdir() if p.is_file() and not is_hidden(p.name)]
        pictures, left_out = list_pictures(sorted(files, key=lambda p: _natural(p.name)))
        if not pictures:
            deeper = next((p for p in path.glob("*/**/*") if p.suffix.lower() in IMAGE_SUFFIXES), None)
            advice = "" if deeper is None else f"; there are some below: '{path}/**/*{deeper.suffix}'"
            advice += f"; {left_out_text(left_out)}" if left_out else ""
            raise StreamError.at(path, f"no pictures in this folder (expected {', '.join(IMAGE_SUFFIXES)}){advice}")
        return Description(root.name or "pictures", "folder", root, tuple(pictures), tuple(left_out))
    if is_picture(path):
        return Description(path.stem, "picture", root.parent, (path,))
    return Description(path.stem, "video", root.parent)


def open_source(
    source: Origin,
    on_broken: Callable[[ImageError], None] | None = None,
    decoder: DecoderName = "opencv",
    every: int = 1,
    timeout_s: float = 10.0,
    cancelled: threading.Event | None = None,
) -> Source:
    """Open `source`: a picture, a folder or glob of pictures, a video file, a webcam number (0, "0") or a URL
    (rtsp://, http://).

    A broken picture in a folder goes to `on_broken` and is left out; without `on_broken` it is logged as a warning.
    `every`: take each n-th frame only, without decoding the others. `timeout_s` bounds opening a webcam or URL and
    waiting for its next frame; `cancelled`, once set, ends both.
    Raises `StreamError` for a source that cannot be opened, `ImageError` for a broken picture.
    """
    description = describe(source)
    name, kind = description.name, description.kind
    if description.left_out:
        _log.warning("%s: %s", source, left_out_text(description.left_out))
    if kind == "folder":
        return _pictures(description, source, on_broken or (lambda error: _log.warning("%s (skipped)", error)), every)
    if kind == "picture":
        (path,) = description.pictures
        frame = SourceFrame(read_image(path), 0, 0.0, path, clock_s=time.time())
        return Source(name, kind, 1, 0.0, lambda: iter([frame]), origin=source, root=description.root)
    target = camera(source)
    shown = f"webcam {target}" if kind == "webcam" else without_password(str(source))
    advice = {
        "video": f"is it a video ({', '.join(VIDEO_SUFFIXES)})? The decoder may lack its codec",
        "webcam": "is it plugged in, free, and readable by this user?",
        "url": "is the address right and the camera reachable?",
    }[kind]
    cancelled = cancelled or threading.Event()
    path = Path(str(source)).absolute()  # as FFmpeg takes what comes before a colon for a protocol
    try:
        capture = open_capture(str(path) if target is None else target, shown, advice, decoder, timeout_s, cancelled)
    except StreamError as error:
        if target is not None:
            raise
        codec = undecoded(path, decoder)
        raise StreamError(f"{shown}: cannot be opened; {codec}" if codec else str(error), path=path) from None
    return of_capture(capture, name, kind, shown, advice, every, source, cancelled, decoder)


def _missing(source: str) -> StreamError:
    reason = "no such file or folder (expected a picture, folder, glob, video, webcam number or URL)"
    return StreamError.at(source, reason)


def _matches(text: str) -> list[Path] | None:
    """The pictures and videos that the glob `text` matches, in natural order; None where `text` is no glob."""
    if not glob.has_magic(text) or Path(text).exists():
        return None
    known = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    matches = (Path(p) for p in glob.glob(text, recursive=True))
    files = [p for p in matches if p.is_file() and (p.suffix.lower() in known or is_picture(p))]
    if not files:
        raise StreamError.at(text, f"matches no picture and no video (expected {', '.join(known)})")
    return sorted(files, key=lambda p: [key for part in p.parts for key in _natural(part)])


def _pictures(folder: Description, origin: Origin, on_broken: Callable[[ImageError], None], every: int) -> Source:
    def frames() -> Iterator[SourceFrame]:
        for index, path in list(enumerate(folder.pictures))[::every]:
            try:
                image = read_image(path)
            except ImageError as error:
                on_broken(error)
                continue
            yield SourceFrame(image, index, 0.0, path, clock_s=time.time())

    count = -(-len(folder.pictures) // every)
    return Source(folder.name, "folder", count, 0.0, frames, origin=origin, root=folder.root)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key under which frame10 comes after frame9."""
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d+)", name)]
