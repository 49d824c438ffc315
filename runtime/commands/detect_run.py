"""Detect in one source or several and keep the results: annotated pictures or videos, and JSON lines."""

from __future__ import annotations

import time
from argparse import BooleanOptionalAction
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

from runtime.commands.arguments import count, flag, number
from runtime.commands.detect_outputs import DetectError as DetectError
from runtime.commands.detect_outputs import Outputs, closed_by_user, distinct, refuse_to_overwrite, require_windows
from runtime.commands.shared import MODELS, InTiles, OnDevice
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

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class SourceSummary:
    """The results of one source."""

    source: str
    """As the user wrote it, without a password."""
    frames: int
    detections: int
    pictures: Path | None
    """The annotated picture, the folder of annotated pictures, or the annotated video; None when not saved."""
    json_lines: Path | None
    """One line for each frame; None when not asked for."""
    state: SourceState
    """The state at the end: why a source failed, and how many frames were dropped."""


@dataclass(frozen=True)
class DetectSummary:
    """The results of a run of `detect`."""

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
    """Ended by Ctrl-C, SIGTERM, SIGHUP, or by q in the window; the outputs are complete up to that frame."""
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
class DetectOptions(InTiles, OnDevice):
    """Which detections of which frames are reported, and where they are written.

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
    """Detect in a picture, folder, glob, video file, webcam or URL, or in several at once, and write the results.

    The output folder gets annotated pictures (named as their sources) or an annotated `.mp4`, and for folders, videos
    and cameras `<name>.jsonl`. A line holds source, frame, time_s and detections (`Detections.to_json`). With tracking,
    each detection has a `track`: null while it is not known.
    Several sources share the detector, and each has its own outputs (a folder of pictures: its own folder). One that
    fails does not stop the others.
    Ctrl-C, SIGTERM or SIGHUP end the run, and the outputs are finished; a second one ends it at once, without them. A
    full disk ends the run by a `DetectError` that names the file: that picture or video is deleted, JSON lines end with
    the last complete one, and the other outputs are complete.
    `model` None: the newest run's (`runtime.runs.newest`). `progress(frames, total or None)` is called for each frame.

    Raises `DetectError`, `StreamError`, `ImageError`, `RunsError`, `CardError`, `BackendError`, `TrackError`, and
    ValueError for unknown classes.
    """
    streaming, save, show = options.streams, options.save, options.show
    requested = [source] if isinstance(source, (str, int, PathLike)) else list(source)
    origins = [origin for entry in requested for origin in expand(entry)]
    if not origins:
        raise DetectError("no source was named")
    if show:
        require_windows()
    skipped: list[tuple[Path, str]] = []

    def on_broken(error: ImageError) -> None:
        skipped.append((error.path, error.reason))

    descriptions = [describe(origin) for origin in origins]
    folder = Path(options.out)
    names = distinct([description.name for description in descriptions])
    shown_names = [without_password(str(origin)) for origin in origins]
    if save:
        refuse_to_overwrite(descriptions, names, folder)
    sources: list[Origin | Source] = list(origins)
    if len(origins) == 1:  # open an only source first, so that its errors come before a model is loaded
        sources = [open_source(origins[0], on_broken, streaming.decoder, streaming.every, streaming.stall_s)]
    detector = model
    if not isinstance(detector, Detector):
        path, backend_options = detector or newest(*MODELS), options.backend_options
        detector = Detector(
            path, options.device, threads=options.threads, options=backend_options, tiles=options.tiling
        )
    elif options.tiles is not None:
        raise DetectError.of("tiles", "they belong to the Detector that was given: Detector(..., tiles=Tiles())")
    finder = _Finder(detector, options.threshold, options.classes, options.track)
    frames = 0
    failure: OSError | VideoError | None = None
    common_lines = Path(options.json_lines) if options.json_lines is not None else None
    with (
        Outputs(descriptions, names, folder, save, common_lines, streaming.every) as outputs,
        Streams(sources, streaming, on_broken) as streams,
        finishing(streams.stop) as interrupted,
    ):
        started = time.perf_counter()
        try:
            for frame, raw in streams.detect(finder.find, options.batch):
                opened = streams.opened(frame.source)
                detections, tracks = finder.choose(frame.source, raw, frame.time_s, opened)
                annotated = draw_detections(frame.image, detections, tracks=tracks) if save or show else frame.image
                name = str(frame.path) if frame.path is not None else shown_names[frame.source]
                line = {"source": name, "frame": frame.index, "time_s": round(frame.time_s, 3)}
                line["detections"] = _json_rows(detections, tracks)
                try:
                    outputs.sources[frame.source].add(frame, opened, annotated, line, len(detections))
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
            # The states hold the reason. The results before the failure are complete, and kept.
        seconds = time.perf_counter() - started
        if failure is None and frames == 0 and not interrupted.is_set():
            unread = f"none of its {len(skipped)} pictures can be read; the first: {skipped[0][1]}" if skipped else ""
            raise DetectError(f"{', '.join(shown_names)}: {unread or 'gives no frame'}")
        failures: list[OSError | VideoError] = [] if failure is None else [failure]
        failures += outputs.close(keep=failure is None or frames > 0)
        if failures:
            raise _not_written(failures, frames, outputs) from failures[0]
        if progress is not None and not interrupted.is_set():  # a video's own count may have been off
            progress(frames + len(skipped), frames + len(skipped))
        states = streams.states
    summaries = tuple(
        SourceSummary(shown_name, output.frames, output.detections, output.pictures, output.lines.path, state)
        for shown_name, output, state in zip(shown_names, outputs.sources, states, strict=True)
    )
    pictures, json_lines = folder if save else None, common_lines
    if len(summaries) == 1:
        pictures, json_lines = summaries[0].pictures, summaries[0].json_lines
    unwritten = tuple(chain.from_iterable(output.unwritten for output in outputs.sources))
    total = sum(summary.detections for summary in summaries)
    return DetectSummary(
        frames, total, tuple(skipped), pictures, json_lines, interrupted.is_set(), summaries, seconds, unwritten
    )


def _not_written(errors: list[OSError | VideoError], frames: int, outputs: Outputs) -> DetectError:
    """The error that names the files that could not be written, and those that are complete all the same."""
    reasons = [f"{e.filename}: {e.strerror}" if isinstance(e, OSError) and e.filename else str(e) for e in errors]
    paths = [path for output in outputs.sources if output.frames for path in (output.pictures, output.lines.path)]
    existing = [str(path) for path in dict.fromkeys(paths) if path is not None and path.exists()]
    kept = f"; complete up to there: {', '.join(existing)}" if existing else ""
    return DetectError(f"{'; '.join(dict.fromkeys(reasons))} (after {frames} frames{kept})")


class _Finder:
    """The detector, with the choice of classes, and a tracker for each source."""

    def __init__(
        self, detector: Detector, threshold: Threshold | None, classes: Collection[str | int] | None, track: bool
    ) -> None:
        if classes is not None and not isinstance(classes, str):
            known = detector.class_names
            classes = [int(c) if isinstance(c, str) and c.isdecimal() and c not in known else c for c in classes]
        Detections.empty(detector.class_names).filter(classes=classes)  # raises for an unknown class, before any work
        self._detector, self._classes = detector, classes
        self._limits = detector.threshold if threshold is None else detector.limits(threshold)
        self._threshold = threshold
        self._trackers: dict[int, Tracker] | None = {} if track else None
        if track:
            self._threshold = Tracker(self._limits, 0.0).detect_from

    def find(self, images: list[Image]) -> list[Detections]:
        return self._detector(images, self._threshold)

    def choose(
        self, source: int, detections: Detections, time_s: float, opened: Source | None
    ) -> tuple[Detections, list[int] | None]:
        """The detections to report, and the track of each, -1 for none; None without tracking."""
        detections = detections.filter(classes=self._classes)
        if self._trackers is None:
            return detections, None
        is_video = opened is not None and opened.is_video
        if source not in self._trackers:
            self._trackers[source] = Tracker(self._limits, opened.fps if opened is not None else 0.0)
        detections, tracks = self._trackers[source].update(detections, time_s if is_video else None)
        return detections, tracks.tolist()


def _json_rows(detections: Detections, tracks: list[int] | None) -> list[dict[str, Any]]:
    rows = detections.to_json()
    for row, track in zip(rows, tracks or [], strict=False):
        row["track"] = track if track >= 0 else None
    return rows


def _total(streams: Streams) -> int | None:
    counts = [opened.count if opened is not None else None for opened in map(streams.opened, range(len(streams)))]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
