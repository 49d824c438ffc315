"""What `runtime detect` leaves behind for each source: pictures or a video, and JSON lines, whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2

from isodet.errors import IsodetError
from runtime.files.write import fitting, partial_path
from runtime.images.image import Image, ImageError, write_image
from runtime.streams.open import Description
from runtime.streams.source import Source, SourceFrame
from runtime.streams.video_file import frame_rate
from runtime.streams.video_writer import VideoWriter

_OF_ONE_NAME = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
"""What a file system says to a name that it does not take, where it takes others."""


class DetectError(IsodetError, RuntimeError):
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
        raise DetectError.at(path, f"cannot make this output folder: {error.strerror}") from None


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
            raise DetectError.at(target, "results would overwrite their sources there; choose another output folder")


class SourceOutput:
    """The results of one source under `folder`, named `name`. `alone`: it is the only source."""

    def __init__(
        self, what: Description, name: str, folder: Path, save: bool, lines: Lines, alone: bool, every: int = 1
    ) -> None:
        self.pictures: Path | None = None
        """The annotated picture, folder or video, once there is one."""
        self.frames = self.detections = 0
        self.unwritten: list[tuple[Path, str]] = []
        """Annotated pictures that cannot be written where the others are, and why: a name or a size too long."""
        self.lines = lines
        self._what, self._name, self._save = what, name, save
        self._folder = output_folder(what, name, folder, alone)
        self._alone, self._every = alone, every
        self._video: VideoWriter | None = None

    def add(
        self, frame: SourceFrame, source: Source | None, annotated: Image, line: dict[str, Any], found: int
    ) -> None:
        """Keep one frame's results. `source` is the opened source, which knows the rate of a video. Raises OSError and
        `VideoError` where they cannot be written.
        """
        if self._save and frame.path is not None:
            self._add_picture(frame.path, annotated)
        elif self._save and source is not None:
            if self._video is None:
                path = self._folder / f"{fitting(self._name, '.mp4')}.mp4"
                self._video, self.pictures = VideoWriter(path, self._rate(source), source.live), path
            self._video.write(annotated, frame.time_s)
        self.lines.write(line)
        self.frames, self.detections = self.frames + 1, self.detections + found

    def _rate(self, source: Source) -> float:
        if source.kind != "video" or not isinstance(source.origin, (str, os.PathLike)):
            return source.fps
        return frame_rate(Path(source.origin), source.fps * self._every) / self._every

    def _add_picture(self, path: Path, annotated: Image) -> None:
        written = annotated_path(self._what, self._name, self._folder, path)
        try:
            write_image(written, annotated)
        except (ImageError, OSError) as error:
            of_this_one = isinstance(error, ImageError) or error.errno in _OF_ONE_NAME
            if not of_this_one or (self._alone and self._what.kind == "picture"):
                raise
            reason = error.reason if isinstance(error, ImageError) else error.strerror
            self.unwritten.append((written, str(reason)))
        else:
            self.pictures = written if self._what.kind == "picture" else self._folder

    def close(self, keep: bool) -> None:
        """End the video, under its name if it is to be kept. Raises OSError where it could not be written whole."""
        if self._video is not None:
            video, self._video = self._video, None
            try:
                video.close(keep)
            except OSError:
                self.pictures = None
                raise


class Lines:
    """JSON lines that appear under their name when they are complete; none for the path None.

    Each line is on its way to the disk before the next begins. Where one cannot be written, those before it are kept.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._file: FileIO | None = None
        self._end = 0
        if path is None:
            return
        if path.is_dir():
            raise DetectError.at(path, "is a folder; expected the name of the file of JSON lines")
        make_folder(path.parent)
        self._partial = partial_path(path)
        with _naming(path):
            self._file = open(self._partial, "wb", buffering=0)  # noqa: SIM115  (closed by `close`)

    def write(self, line: dict[str, Any]) -> None:
        """Add one line. Raises OSError, with the lines before this one kept, where it cannot be written."""
        if self._file is None or self.path is None:
            return
        left = (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        end = self._end + len(left)
        try:
            with _naming(self.path):
                while left:
                    left = left[self._file.write(left) :]
        except OSError:
            self._file.truncate(self._end)
            raise
        self._end = end

    def close(self, keep: bool) -> None:
        """End the lines, under their name if they are to be kept; a second call does nothing. Raises OSError."""
        if self._file is None or self.path is None:
            return
        file, self._file = self._file, None
        try:
            with _naming(self.path):
                file.close()
                if keep:
                    os.replace(self._partial, self.path)
        finally:
            self._partial.unlink(missing_ok=True)


class Outputs:
    """The results of all sources under `folder`: what they are, how each is named, lines in one file or in each's own.

    Leaving the `with` by an error of somebody else's leaves nothing of what is not yet complete.
    """

    def __init__(
        self, what: list[Description], names: list[str], folder: Path, save: bool, json_lines: Path | None, every: int
    ) -> None:
        self.common = Lines(json_lines) if json_lines is not None else None
        self.sources: list[SourceOutput] = []
        try:
            for one, name in zip(what, names, strict=True):
                own = save and one.kind != "picture" and self.common is None
                lines = self.common or Lines(folder / f"{fitting(name, '.jsonl')}.jsonl" if own else None)
                self.sources.append(SourceOutput(one, name, folder, save, lines, len(what) == 1, every))
        except BaseException:
            self.close(keep=False)
            raise

    def close(self, keep: bool) -> list[OSError]:
        """End all of them; what could not be written. Videos first: one that failed leaves the lines its room."""
        failures = []
        lines = [source.lines for source in self.sources] + ([self.common] if self.common is not None else [])
        endings: list[SourceOutput | Lines] = [*self.sources, *lines]
        for output in endings:
            try:
                output.close(keep)
            except OSError as error:
                failures.append(error)
        return failures

    def __enter__(self) -> Outputs:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        self.close(keep=False)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """An OSError of the file that stands in for `path` until it is complete names `path`."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


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
