"""Detect in a source and keep the results: annotated pictures or a video, and JSON lines."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import cv2

from runtime.detector import Detector, Threshold
from runtime.draw import draw_detections
from runtime.image import Image, write_image
from runtime.runs import newest
from runtime.stream import Source, SourceFrame, open_source

Progress = Callable[[int, int | None], None]

MODELS = ("best.onnx", "best.pt")
"""What a run folder may hold to detect with, the preferred first."""


class DetectError(RuntimeError):
    """Detection that cannot start or whose results cannot be kept; the message says what to do."""


@dataclass(frozen=True)
class DetectSummary:
    """What a run of `detect` did."""

    frames: int
    detections: int
    skipped: tuple[tuple[Path, str], ...]
    """Picture files that could not be read, and why."""
    pictures: Path | None
    """The annotated picture, the folder of annotated pictures, or the annotated video; None when not saved."""
    json_lines: Path | None
    """One line for each frame; None when not asked for."""
    interrupted: bool
    """Stopped by Ctrl-C, or by q in the window; the outputs are complete up to there."""


def detect(
    source: str | int | PathLike[str],
    model: str | PathLike[str] | Detector | None = None,
    out: str | PathLike[str] = "detections",
    threshold: Threshold | None = None,
    device: str = "auto",
    threads: int | None = None,
    save: bool = True,
    show: bool = False,
    json_lines: str | PathLike[str] | None = None,
    progress: Progress | None = None,
) -> DetectSummary:
    """Detect in a picture, folder, video file, webcam or URL, and write what was found.

    With `save`, the folder `out` gets annotated pictures (named as their sources) or an annotated `.mp4`,
    and for folders, videos and cameras `<name>.jsonl`; `json_lines` names that file instead, and asks for it
    where there would be none. A line holds source, frame, time_s and detections (`Detections.to_json`).
    `show` opens a window; q closes it and ends the run. Ctrl-C ends the run with the outputs finished.
    `model` None takes the newest run's (`runtime.runs.newest`). `progress(frames, total or None)` follows every frame.

    Raises `DetectError`, `StreamError`, `ImageError`, `RunsError`, `CardError` or `BackendError`.
    """
    skipped: list[tuple[Path, str]] = []
    opened = open_source(source, on_broken=lambda error: skipped.append((error.path, error.reason)))
    detector = model if isinstance(model, Detector) else Detector(model or newest(*MODELS), device, threads=threads)
    folder = Path(out)
    lines_path = Path(json_lines) if json_lines is not None else None
    if lines_path is None and save and opened.kind != "picture":
        lines_path = folder / f"{opened.name}.jsonl"
    _check_outputs(source, opened, folder, save, lines_path)

    frames = found = 0
    interrupted = False
    pictures: Path | None = None
    with _Video(folder / f"{opened.name}.mp4", opened.fps) as video, _Lines(lines_path) as lines:
        try:
            for frame in opened:
                detections = detector(frame.image, threshold)[0]
                annotated = draw_detections(frame.image, detections) if save or show else frame.image
                if save and opened.is_video:
                    video.write(annotated)
                    pictures = video.path
                elif save and frame.path is not None:
                    written = folder / frame.path.name
                    write_image(written, annotated)
                    pictures = written if opened.kind == "picture" else folder
                lines.write(_line(source, frame, detections.to_json()))
                frames, found = frames + 1, found + len(detections)
                if progress is not None:
                    progress(frames + len(skipped), opened.count)
                if show and _closed_by_user(annotated, wait=not opened.is_video):
                    interrupted = True
                    break
        except KeyboardInterrupt:
            interrupted = True
        if frames == 0 and not interrupted:
            raise DetectError(f"{source}: none of its {len(skipped)} pictures can be read; the first: {skipped[0][1]}")
    return DetectSummary(frames, found, tuple(skipped), pictures, lines_path, interrupted)


def _check_outputs(source: Any, opened: Source, folder: Path, save: bool, lines_path: Path | None) -> None:
    if save:
        given = Path(source) if opened.kind in ("picture", "folder", "video") else None
        home = given if opened.kind == "folder" else given.parent if given else None
        if home is not None and home.resolve() == folder.resolve():
            raise DetectError(f"{folder}: results would overwrite their sources there; choose another output folder")
    for path in (folder if save else None, lines_path.parent if lines_path else None):
        if path is not None:
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DetectError(f"{path}: cannot make this output folder: {error.strerror}") from None


def _line(source: Any, frame: SourceFrame, detections: list[dict[str, Any]]) -> dict[str, Any]:
    name = str(frame.path if frame.path is not None else source)
    return {"source": name, "frame": frame.index, "time_s": round(frame.time_s, 3), "detections": detections}


def _closed_by_user(image: Image, wait: bool) -> bool:
    try:
        cv2.imshow("isodet (q closes)", image)
        key = cv2.waitKey(0 if wait else 1) & 0xFF
    except cv2.error:
        raise DetectError("this OpenCV cannot open windows (opencv-python-headless, or no display)") from None
    return key in (ord("q"), 27)


class _Lines:
    """JSON lines that appear under their name when they are complete."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.partial") if path is not None else None
        self._file: IO[str] | None = None

    def __enter__(self) -> _Lines:
        if self._partial is not None:
            self._file = open(self._partial, "w", encoding="utf-8")
        return self

    def write(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        if self._file is None or self._path is None or self._partial is None:
            return
        self._file.close()
        if kind is None:
            os.replace(self._partial, self._path)
        else:
            self._partial.unlink(missing_ok=True)


class _Video:
    """An MP4 that appears under its name when it is complete; the first frame decides its size."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self._partial = path.with_name(f".{path.stem}.partial{path.suffix}")
        self._fps = fps
        self._size_wh = (0, 0)
        self._writer: cv2.VideoWriter | None = None

    def __enter__(self) -> _Video:
        return self

    def write(self, image: Image) -> None:
        height, width = image.shape[:2]
        if self._writer is None:
            self._size_wh = (width, height)
            self._writer = cv2.VideoWriter(
                str(self._partial), cv2.VideoWriter.fourcc(*"mp4v"), self._fps, self._size_wh
            )
            if not self._writer.isOpened():
                raise DetectError(f"{self.path}: this OpenCV cannot write mp4v video; use --no-save with --json")
        if (width, height) != self._size_wh:  # a camera may change its mind; a file cannot
            image = cv2.resize(image, self._size_wh).astype(image.dtype, copy=False)
        self._writer.write(image)

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        if self._writer is None:
            return
        self._writer.release()
        if kind is None:
            os.replace(self._partial, self.path)
        else:
            self._partial.unlink(missing_ok=True)
