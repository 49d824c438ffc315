"""Which engine runs an ONNX file fastest on this machine: each in turn, on the same frame."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from isodet.errors import ArgumentError
from runtime.backends.options import DEFAULT, BackendOptions, Engine
from runtime.backends.protocol import BackendError
from runtime.bench.bench import BenchOptions, first_frame
from runtime.card.card import file_kind
from runtime.detector import Detector
from runtime.files.text_table import text_table
from runtime.tiles import Tiles

ENGINES: tuple[Engine, ...] = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Contestant:
    """An engine that was timed, or why it was not.

    ms: median of one frame, end to end. why: "" for one that was timed.
    """

    engine: Engine
    runs_on: str
    ms: float | None
    why: str = ""


@dataclass(frozen=True)
class Pick:
    """Engines, the fastest first; then those that do not run here."""

    contestants: tuple[Contestant, ...]

    @property
    def fastest(self) -> Contestant:
        return self.contestants[0]

    def table(self) -> str:
        """A line for each engine, and how to take the first."""
        rows = []
        for one in self.contestants:
            ratio = f"{one.ms / self.fastest.ms:.2f} x" if one.ms and self.fastest.ms else "-"
            rows.append([one.engine, "-" if one.ms is None else f"{one.ms:.2f}", ratio, one.runs_on or one.why])
        lines = text_table(["engine", "ms a frame", "time", "what runs"], rows, left={"engine", "what runs"})
        engine = self.fastest.engine
        lines += [
            "",
            f"fastest here: {engine}; take it with --engine {engine}, in Python with",
            f'  Detector(..., options=BackendOptions(engine="{engine}"))',
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        return {"fastest": self.fastest.engine, "engines": [asdict(one) for one in self.contestants]}


def pick(
    artifact: str | PathLike[str],
    options: BenchOptions = BenchOptions(),
    device: str = "auto",
    threads: int | None = None,
    backend_options: BackendOptions = DEFAULT,
    tiles: Tiles | Literal["card"] | None = "card",
    progress: Callable[[int, int], None] | None = None,
) -> Pick:
    """Time one frame of `artifact`, an ONNX file, end to end in each of `ENGINES`, in turns for `options.seconds` each.

    `device`, `threads`, `backend_options`, `tiles`: those of a `Detector`, but for the engine. Raises `ArgumentError`
    for another file and for batches and streams, which it does not time, and `BackendError` where no engine runs it.
    """
    if file_kind(Path(artifact)) != "onnx":
        raise ArgumentError.of("pick", f"engines are a choice for .onnx files, and {artifact} is none")
    if options.batch_sizes is not None or options.streams:
        raise ArgumentError.of("pick", "it times single frames; leave out --batch and --streams")
    detectors: dict[Engine, Detector] = {}
    missing = []
    for engine in ENGINES:
        try:
            asked = replace(backend_options, engine=engine)
            detectors[engine] = Detector(artifact, device=device, threads=threads, options=asked, tiles=tiles)
        except BackendError as error:
            missing.append(Contestant(engine, "", None, str(error)))
    if not detectors:
        raise BackendError("; ".join(one.why for one in missing))
    frame, _ = first_frame(options)
    seconds: dict[Engine, list[float]] = {engine: [] for engine in detectors}
    for detector in detectors.values():
        for _ in range(options.warmup):
            detector(frame)
    begun, whole = time.perf_counter(), options.seconds * len(detectors)
    while (spent := time.perf_counter() - begun) < whole or not all(seconds.values()):
        for engine, detector in detectors.items():
            started = time.perf_counter()
            detector(frame)
            seconds[engine].append(time.perf_counter() - started)
        if progress is not None:
            progress(min(round(100 * spent / whole), 100), 100)
    timed = [
        Contestant(engine, detectors[engine].runs_on, 1000 * statistics.median(times))
        for engine, times in seconds.items()
    ]
    return Pick((*sorted(timed, key=lambda one: one.ms or 0.0), *missing))
