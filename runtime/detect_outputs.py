"""What `runtime.detect` leaves behind for each source: pictures or a video, and JSON lines, whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import cv2

from runtime.image import Image, write_image
from runtime.stream import Description, Source, SourceFrame

LONGEST_GAP_S = 1.0
"""A pause of a live source is no longer than this in its video."""


class DetectError(RuntimeError):
    """Detection that cannot start or whose results cannot be kept; the message says what to do."""


def distinct(names: list[str]) -> list[str]:
    """`names`, where one that was there before, whatever its case, gets the first number that makes it new."""
    taken: set[str] = set()
    result = []
    for name in names:
        new, number = name, 2
        while new.lower() in taken:
            new, number = f"{name}-{number}", number + 1
        taken.add(new.lower())
        result.append(new)
    return result


def make_folder(path: Path) -> None:
    """Make the output folder `path`; raises `DetectError`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DetectError(f"{path}: cannot make this output folder: {error.strerror}") from None


def output_folder(what: Description, name: str, folder: Path, alone: bool) -> Path:
    """Where the results of a source lie: a folder of pictures among others has one of its own."""
    return folder / name if what.kind == "folder" and not alone else folder


def annotated_path(what: Description, name: str, folder: Path, picture: Path) -> Path:
    """The annotated form of one of the source's pictures, in its `output_folder`."""
    if what.kind == "picture":
        return folder / _writable(f"{name}{picture.suffix}")
    parent = picture.parent.resolve()  # of the picture's own link, if it is one
    return folder / parent.relative_to(what.root or parent) / _writable(picture.name)


def _writable(name: str) -> str:
    """`name`, with .jpg behind a suffix in which no picture can be written, as .jfif and .mpo."""
    return name if cv2.haveImageWriter(name) else f"{name}.jpg"


def refuse_to_overwrite(sources: list[Description], names: list[str], folder: Path) -> None:
    """Raise `DetectError` where results in `folder` would lie on top of their sources, or of another's."""
    originals = {p.parent.resolve() / p.name for source in sources for p in source.pictures}
    for source, name in zip(sources, names, strict=True):
        target = output_folder(source, name, folder, len(sources) == 1)
        written = (annotated_path(source, name, target.resolve(), picture) for picture in source.pictures)
        same = source.root is not None and source.root.resolve() == target.resolve()
        if same or not originals.isdisjoint(written):
            raise DetectError(f"{target}: results would overwrite their sources there; choose another output folder")


class SourceOutput:
    """The results of one source under `folder`, named `name`. `alone`: it is the only source."""

    def __init__(self, what: Description, name: str, folder: Path, save: bool, lines: Lines, alone: bool) -> None:
        self.pictures: Path | None = None
        """The annotated picture, folder or video, once there is one."""
        self.frames = self.detections = 0
        self._what, self._name, self._save, self._lines = what, name, save, lines
        self._folder = output_folder(what, name, folder, alone)
        self._stack = ExitStack()
        self._video: _Video | None = None

    def __enter__(self) -> SourceOutput:
        return self

    def add(
        self, frame: SourceFrame, source: Source | None, annotated: Image, line: dict[str, Any], found: int
    ) -> None:
        """Keep one frame's results. `source` is the opened source, which knows the rate of a video."""
        if self._save and frame.path is not None:
            self._add_picture(frame.path, annotated)
        elif self._save and source is not None:
            if self._video is None:
                path = self._folder / f"{self._name}.mp4"
                self._video = self._stack.enter_context(_Video(path, source.fps, source.live))
                self.pictures = path
            self._video.write(annotated, frame.time_s)
        self._lines.write(line)
        self.frames, self.detections = self.frames + 1, self.detections + found

    def _add_picture(self, path: Path, annotated: Image) -> None:
        written = annotated_path(self._what, self._name, self._folder, path)
        self.pictures = written if self._what.kind == "picture" else self._folder
        write_image(written, annotated)

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)


class Lines:
    """JSON lines that appear under their name when they are complete; none for the path None."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._partial = path.with_name(f".{path.name}.partial") if path is not None else None
        self._file: IO[str] | None = None

    def __enter__(self) -> Lines:
        if self.path is not None and self._partial is not None:
            if self.path.is_dir():
                raise DetectError(f"{self.path}: is a folder; expected the name of the file of JSON lines")
            make_folder(self._partial.parent)
            self._file = open(self._partial, "w", encoding="utf-8")
        return self

    def write(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        if self._file is None or self.path is None or self._partial is None:
            return
        self._file.close()
        if kind is None:
            os.replace(self._partial, self.path)
        else:
            self._partial.unlink(missing_ok=True)


class _Video:
    """An MP4 that appears under its name when it is complete; the first frame decides its size.

    A live source's frames come when they come: each stands until the next, so that the video runs as the clock did.
    """

    def __init__(self, path: Path, fps: float, live: bool) -> None:
        self.path = path
        self._partial = path.with_name(f".{path.stem}.partial{path.suffix}")
        self._fps, self._live = fps, live
        self._size_wh = (0, 0)
        self._writer: cv2.VideoWriter | None = None
        self._last: Image | None = None
        self._last_s = self._clock = 0.0
        self._written = 0

    def __enter__(self) -> _Video:
        return self

    def write(self, image: Image, time_s: float) -> None:
        height, width = image.shape[:2]
        if self._writer is None:
            self._size_wh, self._last_s = (width, height), time_s
            self._writer = cv2.VideoWriter(
                str(self._partial), cv2.VideoWriter.fourcc(*"mp4v"), self._fps, self._size_wh
            )
            if not self._writer.isOpened():
                raise DetectError(f"{self.path}: this OpenCV cannot write mp4v video; use --no-save with --json")
        if (width, height) != self._size_wh:  # a camera may change its mind; a file cannot
            image = cv2.resize(image, self._size_wh).astype(image.dtype, copy=False)
        if self._live and self._last is not None:
            self._clock += min(time_s - self._last_s, LONGEST_GAP_S)
            due = round(self._clock * self._fps)
            for _ in range(due - self._written):
                self._write(self._last)
            if self._written > due:  # the camera is faster than its video: this frame has no place in it
                self._last, self._last_s = image, time_s
                return
        self._write(image)
        self._last, self._last_s = image if self._live else None, time_s

    def _write(self, image: Image) -> None:
        assert self._writer is not None
        self._writer.write(image)
        self._written += 1

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        if self._writer is None:
            return
        self._writer.release()
        if kind is None:
            os.replace(self._partial, self.path)
        else:
            self._partial.unlink(missing_ok=True)


def require_windows() -> None:
    """Raise `DetectError` where OpenCV cannot open a window.

    Tried in a process of its own: without a display, OpenCV's Qt ends the process that asks, and no exception is seen.
    """
    code = "import cv2; cv2.namedWindow('isodet'); cv2.destroyAllWindows()"
    tried = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    if tried.returncode:
        raise DetectError(
            "this OpenCV cannot open windows: it is opencv-python-headless, or there is no display; leave out --show"
        )


def closed_by_user(title: str, image: Image, wait: bool) -> bool:
    """Show `image`; whether the user pressed q or Escape."""
    cv2.imshow(title, image)
    return (cv2.waitKey(0 if wait else 1) & 0xFF) in (ord("q"), 27)
