"""The files that `runtime detect` writes for each source: pictures or a video, and JSON lines, or none of them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from io import FileIO
from pathlib import Path
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
"""Errors of a file system about the name of one file, where other names are fine."""


class DetectError(IsodetError, RuntimeError):
    """Detection that cannot start, or whose results cannot be written; the message says what to do."""


def distinct(names: list[str]) -> list[str]:
    """`names`, each repeated one (upper or lower case) with the first number that makes it new: a, a-2, a-3."""
    result: dict[str, str] = {}  # by the name in lower case
    for name in names:
        new, number = name, 2
        while new.lower() in result:
            new, number = f"{name}-{number}", number + 1
        result[new.lower()] = new
    return list(result.values())


def make_folder(path: Path) -> None:
    """Make the output folder `path`; raises `DetectError`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DetectError.at(path, f"cannot make this output folder: {error.strerror}") from None


def output_folder(source: Description, name: str, folder: Path, alone: bool) -> Path:
    """The folder of a source's results: a folder of pictures that is not the only source gets one of its own."""
    return folder / name if source.kind == "folder" and not alone else folder


def annotated_path(source: Description, name: str, folder: Path, picture: Path) -> Path:
    """The file for the annotated form of one of the source's pictures, in its `output_folder`."""
    if source.kind == "picture":
        path = folder / f"{name}{picture.suffix}"
    else:
        parent = picture.parent.resolve()  # the folder of a link, not of its target
        path = folder / parent.relative_to(source.root or parent) / picture.name
    return path if cv2.haveImageWriter(path.name) else path.with_name(f"{path.name}.jpg")  # as for .jfif and .mpo


def refuse_to_overwrite(sources: list[Description], names: list[str], folder: Path) -> None:
    """Raise `DetectError` where results in `folder` would overwrite a source."""
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
        self, source: Description, name: str, folder: Path, save: bool, lines: Lines, alone: bool, every: int
    ) -> None:
        self.pictures: Path | None = None
        """The annotated picture, folder or video; None until it exists."""
        self.frames = self.detections = 0
        self.unwritten: list[tuple[Path, str]] = []
        """Annotated pictures that could not be written although others can, and why: their name or size is too long."""
        self.lines = lines
        self._source, self._name, self._save = source, name, save
        self._folder = output_folder(source, name, folder, alone)
        self._alone, self._every = alone, every
        self._video: VideoWriter | None = None

    def add(
        self, frame: SourceFrame, opened: Source | None, annotated: Image, line: dict[str, Any], count: int
    ) -> None:
        """Write one frame's results: the `annotated` frame, and the JSON `line` of its `count` detections.

        `opened`: the opened source, for the frame rate. Raises OSError and `VideoError` where it cannot be written.
        """
        if self._save and frame.path is not None:
            self._add_picture(frame.path, annotated)
        elif self._save and opened is not None:
            if self._video is None:
                fps = opened.fps
                if opened.kind == "video" and isinstance(opened.origin, (str, os.PathLike)):
                    fps = frame_rate(Path(opened.origin), fps * self._every) / self._every
                self.pictures = self._folder / f"{fitting(self._name, '.mp4')}.mp4"
                self._video = VideoWriter(self.pictures, fps, opened.live)
            self._video.write(annotated, frame.time_s)
        self.lines.write(line)
        self.frames, self.detections = self.frames + 1, self.detections + count

    def _add_picture(self, picture: Path, annotated: Image) -> None:
        path = annotated_path(self._source, self._name, self._folder, picture)
        try:
            write_image(path, annotated)
        except (ImageError, OSError) as error:
            only_this_one = isinstance(error, ImageError) or error.errno in _OF_ONE_NAME
            if not only_this_one or (self._alone and self._source.kind == "picture"):
                raise
            reason = error.reason if isinstance(error, ImageError) else error.strerror
            self.unwritten.append((path, str(reason)))
        else:
            self.pictures = path if self._source.kind == "picture" else self._folder

    def close(self, keep: bool) -> None:
        """Finish the video; without `keep`, delete it. Raises OSError where it could not be written completely."""
        if self._video is not None:
            try:
                self._video.close(keep)
            except OSError:
                self.pictures = None
                raise


class Lines:
    """A file of JSON lines, which appears under its name when it is complete. For the path None, nothing is written.

    Each line goes to the disk before the next one. Where a line cannot be written, those before it are kept.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self._end = path, 0
        self._file: FileIO | None = None
        if path is None:
            return
        if path.is_dir():
            raise DetectError.at(path, "is a folder; expected the name of the file of JSON lines")
        make_folder(path.parent)
        self._partial = partial_path(path)
        with _naming(path):
            self._file = open(self._partial, "wb", buffering=0)  # noqa: SIM115  (closed by `close`)

    def write(self, line: dict[str, Any]) -> None:
        """Add one line. Raises OSError where it cannot be written; the lines before it are kept."""
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
        """Finish the file; without `keep`, delete it. A second call does nothing. Raises OSError."""
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


class Outputs(AbstractContextManager["Outputs"]):
    """The results of all sources under `folder`, each by its name; JSON lines in the file `common`, or in one for each.

    Leaving the `with` deletes all files that `close` has not completed.
    """

    def __init__(
        self, sources: list[Description], names: list[str], folder: Path, save: bool, common: Path | None, every: int
    ) -> None:
        if save:
            make_folder(folder)
        self._common_lines = Lines(common) if common is not None else None
        self.sources: list[SourceOutput] = []
        try:
            for source, name in zip(sources, names, strict=True):
                own = save and source.kind != "picture"
                path = folder / f"{fitting(name, '.jsonl')}.jsonl" if own else None
                lines = self._common_lines or Lines(path)
                self.sources.append(SourceOutput(source, name, folder, save, lines, len(sources) == 1, every))
        except BaseException:
            self.close(keep=False)
            raise

    def close(self, keep: bool) -> list[OSError]:
        """Finish all; returns the errors. Videos come first: a failed one frees disk space for the lines."""
        failures = []
        lines = [source.lines for source in self.sources]
        outputs: list[SourceOutput | Lines] = [*self.sources, *lines, *filter(None, [self._common_lines])]
        for output in outputs:
            try:
                output.close(keep)
            except OSError as error:
                failures.append(error)
        return failures

    def __exit__(self, *_: object) -> None:
        self.close(keep=False)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Within, an OSError about the temporary file of `path` names `path`."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def require_windows() -> None:
    """Raise `DetectError` where OpenCV cannot open a window.

    This tries it in another process: without a display, OpenCV's Qt ends the process, without an exception.
    """
    code = "import cv2; cv2.namedWindow('isodet'); cv2.destroyAllWindows()"
    if subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode:
        raise DetectError(
            "this OpenCV cannot open windows: it is opencv-python-headless, or there is no display; leave out --show"
        )


def closed_by_user(title: str, image: Image, wait: bool) -> bool:
    """Show `image`; whether the user pressed q or Escape."""
    cv2.imshow(title, image)
    return (cv2.waitKey(0 if wait else 1) & 0xFF) in (ord("q"), 27)
