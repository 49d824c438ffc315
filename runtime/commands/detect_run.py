"""Detect in one source or several and keep the results: annotated pictures or videos, and JSON lines."""

from __future__ import annotations

import time
from argparse import BooleanOptionalAction
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends.options import BackendOptions
from runtime.commands.arguments import count, flag, number
from runtime.commands.detect_outputs import (
    DetectError,
    Outputs,
    closed_by_user,
    distinct,
    make_folder,
    refuse_to_overwrite,
    require_windows,
)
from runtime.commands.shared import MODELS, OnDevice
from runtime.commands.signals import finishing
from runtime.detections import Detections
from runtime.detector import Detector, Threshold
from runtime.images.draw import draw_detections
from runtime.images.image import Image, ImageError
from runtime.runs import newest
from runtime.streams.capture import without_password
from runtime.streams.open import describe, expand, open_source
from runtime.streams.options import SourceState, StreamOptions
from runtime.streams.source import Origin, Source
from runtime.streams.streams import Streams
from runtime.streams.track import Tracker
from runtime.streams.video_writer import VideoError

__all__ = ["DetectError", "DetectOptions", "DetectSummary", "SourceSummary", "detect"]

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class SourceSummary:
    """What was done with one source."""

    source: str
    """As it was given, without a password."""
    frames: int
    detections: int
    pictures: Path | None
    """The annotated picture, the folder of annotated pictures, or the annotated video; None when not saved."""
    json_lines: Path | None
    """One line for each frame; None when not asked for."""
    state: SourceState
    """At the end: failed sources say why, live ones what they dropped."""


@dataclass(frozen=True)
class DetectSummary:
    """What a run of `detect` did."""

    frames: int
    detections: int
    skipped: tuple[tuple[Path, str], ...]
    """Picture files that could not be read, and why."""
    pictures: Path | None
    """The annotated picture, the folder of annotated pictures, or the annotated video; None when not saved. The output
    folder for several sources."""
    json_lines: Path | None
    """One line for each frame; None when not asked for, or when several sources have one each."""
    interrupted: bool
    """Stopped by Ctrl-C, SIGTERM, SIGHUP, or by q in the window; the outputs are complete up to there."""
    sources: tuple[SourceSummary, ...]
    seconds: float
    """From the first request for a frame to the last result."""
    unwritten: tuple[tuple[Path, str], ...] = ()
    """Annotated pictures that could not be written as they are (their name or size), and why."""


def _classes(text: str) -> list[str]:
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise ValueError(f"expected class names or labels with commas between, got {text!r}")
    return names


def _threshold(text: str) -> Threshold:
    return "card" if text == "card" else number("a score from 0 to 1", lambda score: 0 <= score <= 1)(text)


@dataclass(frozen=True, kw_only=True)
class DetectOptions(OnDevice):
    """What is reported of which frames, and where it is written.

    out: output folder
    threshold: lowest score reported, or card for each class's own (default: the model's)
    classes: report these classes only, by name or label; "3" is a label where no class is named so (default: all)
    track: number objects from frame to frame (ByteTrack, the extra track)
    json_lines: one JSON lines file for all sources (default: <name>.jsonl in --out for each, except for pictures)
    save: write pictures, videos and JSON lines into --out (default: --save)
    show: show the frames in a window each; q closes them and ends
    batch: most frames at once (default: the number of sources)
    """

    out: str | PathLike[str] = "detections"
    threshold: Annotated[Threshold | None, flag(type=_threshold)] = None
    classes: Annotated[Collection[str | int] | None, flag(metavar="NAME,...", type=_classes)] = None
    track: bool = False
    json_lines: Annotated[str | PathLike[str] | None, flag("--json", metavar="FILE")] = None
    save: Annotated[bool, flag("--save", action=BooleanOptionalAction)] = True
    show: bool = False
    streams: Annotated[StreamOptions, {
        "every": flag(metavar="N"), "decoder": flag(), "stall_s": flag("--stall", metavar="SECONDS"),
        "give_up_s": flag("--give-up", metavar="SECONDS"),
    }] = StreamOptions()  # fmt: skip
    batch: Annotated[int | None, flag(metavar="N", type=count)] = None


def detect(
    source: Origin | Sequence[Origin],
    model: str | PathLike[str] | Detector | None = None,
    options: DetectOptions = DetectOptions(),
    progress: Progress | None = None,
) -> DetectSummary:
    """Detect in a picture, folder, glob, video file, webcam or URL, or in several at once, and write what was found.

    The output folder gets annotated pictures (named as their sources) or an annotated `.mp4`, and for folders, videos
    and cameras `<name>.jsonl`. A line holds source, frame, time_s and detections (`Detections.to_json`); these have a
    `track` where objects are tracked, null for one that is not known yet.
    Several sources have outputs of their own (folders: a folder of their own), and go through the detector together.
    One that fails does not stop the others.
    Ctrl-C, SIGTERM or SIGHUP end the run with the outputs finished; a second one ends it at once, without them. A disk
    that is full ends the run, too, by a `DetectError` that names the file: a picture or video is then gone, lines end
    with the last whole one, the others are complete.
    `model` None takes the newest run's (`runtime.runs.newest`). `progress(frames, total or None)` follows every frame.

    Raises `DetectError`, `StreamError`, `ImageError`, `RunsError`, `CardError`, `BackendError`, `TrackError`, and
    ValueError for unknown classes.
    """
    streaming, save, show = options.streams, options.save, options.show
    given = [source] if isinstance(source, (str, int, PathLike)) else list(source)
    origins = [origin for one in given for origin in expand(one)]
    if not origins:
        raise DetectError("no source was named")
    if show:
        require_windows()
    skipped: list[tuple[Path, str]] = []

    def on_broken(error: ImageError) -> None:
        skipped.append((error.path, error.reason))

    what = [describe(origin) for origin in origins]
    folder = Path(options.out)
    names, shown_names = distinct([one.name for one in what]), [without_password(str(origin)) for origin in origins]
    if save:
        refuse_to_overwrite(what, names, folder)
    first: list[Origin | Source] = list(origins)
    if len(origins) == 1:  # what is wrong with an only source is told before a model is loaded
        first = [open_source(origins[0], on_broken, streaming.decoder, streaming.every, streaming.stall_s)]
    detector = model
    if not isinstance(detector, Detector):
        how = BackendOptions(check_hashes=not options.skip_hashes)
        detector = Detector(detector or newest(*MODELS), options.device, threads=options.threads, options=how)
    finder = _Finder(detector, options.threshold, options.classes, options.track)
    if save:
        make_folder(folder)

    frames = 0
    failure: OSError | VideoError | None = None
    whole = Path(options.json_lines) if options.json_lines is not None else None
    with (
        Outputs(what, names, folder, save, whole, streaming.every) as outputs,
        Streams(first, streaming, on_broken) as streams,
        finishing(streams.stop) as interrupted,
    ):
        started = time.perf_counter()
        try:
            for frame, raw in streams.detect(finder.find, options.batch):
                opened = streams.opened(frame.source)
                found, tracks = finder.choose(frame.source, raw, frame.time_s, opened)
                annotated = (
                    draw_detections(frame.image, found, tracks=_numbers(tracks)) if save or show else frame.image
                )
                line = {
                    "source": str(frame.path) if frame.path is not None else shown_names[frame.source],
                    "frame": frame.index, "time_s": round(frame.time_s, 3), "detections": _listed(found, tracks),
                }  # fmt: skip
                try:
                    outputs.sources[frame.source].add(frame, opened, annotated, line, len(found))
                except (OSError, VideoError) as error:
                    failure = error
                    break
                frames += 1
                if progress is not None:
                    progress(frames + len(skipped), _total(streams))
                title = f"isodet {names[frame.source]} (q closes)"
                if show and closed_by_user(title, annotated, wait=opened is not None and not opened.is_video):
                    interrupted.set()
                    break
        except Exception as error:
            if frames == 0 or not streams.failed_with(error):
                raise
            # Its reason is in the states: what came before the failure is complete, and kept.
        seconds = time.perf_counter() - started
        if failure is None and frames == 0 and not interrupted.is_set():
            raise DetectError(
                f"{', '.join(shown_names)}: none of its {len(skipped)} pictures can be read; the first: {skipped[0][1]}"
                if skipped else f"{', '.join(shown_names)}: gives no frame"
            )  # fmt: skip
        failures: list[OSError | VideoError] = [] if failure is None else [failure]
        failures += outputs.close(keep=failure is None or frames > 0)
        if failures:
            raise _not_written(failures, frames, outputs) from failures[0]
        if progress is not None and not interrupted.is_set():  # a video's own count may have been off
            progress(frames + len(skipped), frames + len(skipped))
        states = streams.states
    sources = tuple(
        SourceSummary(shown_name, output.frames, output.detections, output.pictures, output.lines.path, state)
        for shown_name, output, state in zip(shown_names, outputs.sources, states, strict=True)
    )
    alone = sources[0] if len(sources) == 1 else None
    return DetectSummary(
        frames, sum(s.detections for s in sources), tuple(skipped),
        alone.pictures if alone else folder if save else None,
        alone.json_lines if alone else whole,
        interrupted.is_set(), sources, seconds, tuple(one for output in outputs.sources for one in output.unwritten),
    )  # fmt: skip


def _not_written(errors: list[OSError | VideoError], frames: int, outputs: Outputs) -> DetectError:
    """What could not be written, and what is there all the same."""
    reasons = [f"{e.filename}: {e.strerror}" if isinstance(e, OSError) and e.filename else str(e) for e in errors]
    paths = [path for output in outputs.sources if output.frames for path in (output.pictures, output.lines.path)]
    there = [str(path) for path in dict.fromkeys(paths) if path is not None and path.exists()]
    kept = f"; complete up to there: {', '.join(there)}" if there else ""
    return DetectError(f"{'; '.join(dict.fromkeys(reasons))} (after {frames} frames{kept})")


class _Finder:
    """The detector, with the choice of classes and the tracks of each source."""

    def __init__(
        self, detector: Detector, threshold: Threshold | None, classes: Collection[str | int] | None, track: bool
    ) -> None:
        if classes is not None and not isinstance(classes, str):
            known = detector.class_names
            classes = [int(c) if isinstance(c, str) and c.isdecimal() and c not in known else c for c in classes]
        Detections.empty(detector.class_names).filter(classes=classes)  # an unknown class is told before any work
        self._detector, self._classes = detector, classes
        self._limits = detector.threshold if threshold is None else detector.limits(threshold)
        self._threshold = threshold
        self._trackers: dict[int, Tracker] | None = {} if track else None
        if track:
            self._threshold = Tracker(self._limits, 0.0).detect_from

    def find(self, images: list[Image]) -> list[Detections]:
        return self._detector(images, self._threshold)

    def choose(
        self, source: int, found: Detections, time_s: float, opened: Source | None
    ) -> tuple[Detections, NDArray[np.int64] | None]:
        """The detections to report, and their tracks where tracks are wanted."""
        found = found.filter(classes=self._classes)
        if self._trackers is None:
            return found, None
        moving = opened is not None and opened.is_video
        if source not in self._trackers:
            self._trackers[source] = Tracker(self._limits, opened.fps if opened is not None else 0.0)
        return self._trackers[source].update(found, time_s if moving else None)


def _listed(found: Detections, tracks: NDArray[np.int64] | None) -> list[dict[str, Any]]:
    rows = found.to_json()
    for row, track in zip(rows, tracks.tolist() if tracks is not None else [], strict=False):
        row["track"] = track if track >= 0 else None
    return rows


def _numbers(tracks: NDArray[np.int64] | None) -> list[int] | None:
    return None if tracks is None else tracks.tolist()


def _total(streams: Streams) -> int | None:
    counts = [opened.count if opened is not None else None for opened in map(streams.opened, range(len(streams)))]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
