"""The speed of a model on this machine: each stage from an encoded picture to detections, batches, and streams.

Turns of end to end and of the engine alone alternate in one run, so that their ratio holds on a busy machine, too.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from isodet.errors import ArgumentError
from runtime.backends.options import DEFAULT, BackendOptions
from runtime.backends.protocol import Backend
from runtime.bench.stages import BARE, MERGE, STAGES, WHOLE, inputs, nms_shares, notes, time_turn
from runtime.bench.streams import LOAD, StreamTiming, time_streams
from runtime.detector import Detector
from runtime.images.image import Image, read_image
from runtime.tiles import Tiles


@dataclass(frozen=True)
class StageTiming:
    """One stage at one batch size; milliseconds for the whole batch."""

    batch_size: int
    stage: str
    """One of `runtime.bench.stages.STAGES` that can be timed by itself, end to end, or bare engine."""
    p50_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    images_per_s: float
    """Batch size divided by the mean time."""
    iterations: int


@dataclass(frozen=True)
class BatchRatio:
    """End to end against the engine alone, at one batch size: medians over the turns."""

    batch_size: int
    of_bare: float
    """Images per second of end to end, divided by those of the bare engine."""
    overhead_ms: float
    """End to end minus bare engine, for the whole batch."""


@dataclass(frozen=True)
class BenchTable:
    """Timings of one model on one machine."""

    model: str
    engine: str
    device: str
    processor: str
    threads: int | None
    """CPU threads of the engine; None for its own choice."""
    precision: str
    frame_hw: tuple[int, int]
    input_size_hw: tuple[int, int]
    inputs_per_frame: int
    """1, or the tiles of a frame."""
    tiles: str
    """How frames are cut; "" where they are not."""
    rows: tuple[StageTiming, ...]
    ratios: tuple[BatchRatio, ...]
    streams: tuple[StreamTiming, ...]
    notes: Mapping[str, str]
    """How each stage was measured, or why it has no row."""

    def to_json(self) -> dict[str, Any]:
        """JSON-ready object; numbers have 3 decimals."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)), parse_float=lambda text: round(float(text), 3))
        return content

    def table(self) -> str:
        """The timings as text."""
        frame, size = "x".join(map(str, self.frame_hw)), "x".join(map(str, self.input_size_hw))
        threads = "its own choice of threads" if self.threads is None else f"{self.threads} threads"
        lines = [
            f"{self.model}: {self.precision}, input {size}, frames {frame} (height x width)",
            f"{self.engine} on {self.device} ({self.processor}), {threads}",
            *([f"{self.inputs_per_frame} inputs a frame: {self.tiles}"] if self.tiles else []),
            "",
            f"{'batch':>5}  {'stage':<15}{'p50 ms':>10}{'p95 ms':>10}{'p99 ms':>10}{'images/s':>11}{'runs':>7}",
        ]
        for ratio in self.ratios:
            rows = [row for row in self.rows if row.batch_size == ratio.batch_size]
            for row in rows:
                batch = str(row.batch_size) if row is rows[0] else ""
                times = f"{row.p50_ms:>10.2f}{row.p95_ms:>10.2f}{row.p99_ms:>10.2f}"
                lines.append(f"{batch:>5}  {row.stage:<15}{times}{row.images_per_s:>11.1f}{row.iterations:>7}")
            of_bare = f"{ratio.of_bare:.1%} of the bare engine's images/s"
            lines.append(f"{'':>5}  = {of_bare}, {ratio.overhead_ms:+.2f} ms a batch")
        if self.streams:
            rates = f"{'streams':>7}{'batch':>7}{'images/s':>11}{'of bare':>9}{'mean batch':>12}"
            lines += ["", f"{rates}{f'at {LOAD:.0%}: p50':>14}{'p95':>9}{'p99 ms':>9}"]
        for timing in self.streams:
            rates = f"{timing.images_per_s:>11.1f}{timing.of_bare:>9.1%}{timing.mean_batch:>12.1f}"
            times = f"{timing.p50_ms:>14.2f}{timing.p95_ms:>9.2f}{timing.p99_ms:>9.2f}"
            lines.append(f"{timing.streams:>7}{timing.batch_size:>7}{rates}{times}")
        return "\n".join([*lines, "", *(f"{stage}: {how}" for stage, how in self.notes.items())])


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What is timed, and for how long. Raises ValueError for impossible sizes and times.

    batch_sizes: batch sizes (default: 1, or the graph's fixed one)
    frame_hw: size of the synthetic frames, the same every time
    picture: a picture to use instead of synthetic frames
    streams: numbers of cameras: so many threads submit to one batcher, for each batch size
    max_wait_ms: longest wait of the batcher for more frames, in milliseconds
    seconds: time for each batch size, at least 5 turns, and twice for each number of streams
    iterations: turns timed for each batch size, instead of seconds
    warmup: turns before timing
    """

    batch_sizes: tuple[int, ...] | None = None
    frame_hw: tuple[int, int] = (720, 1280)
    picture: str | PathLike[str] | None = None
    streams: tuple[int, ...] = ()
    max_wait_ms: float = 4.0
    seconds: float = 3.0
    iterations: int | None = None
    warmup: int = 3

    def __post_init__(self) -> None:
        for name, values, least in (
            ("batch_sizes", self.batch_sizes or (), 1), ("frame_hw", self.frame_hw, 1), ("streams", self.streams, 1),
            ("iterations", () if self.iterations is None else (self.iterations,), 1), ("warmup", (self.warmup,), 0),
        ):  # fmt: skip
            if min(values, default=least) < least:
                raise ArgumentError.of(name, f"expected at least {least}, got {','.join(map(str, values))}")
        for name, value in (("seconds", self.seconds), ("max_wait_ms", self.max_wait_ms)):
            if not 0 < value < math.inf:
                raise ArgumentError.of(name, f"expected a positive number, got {value}")


def first_frame(options: BenchOptions) -> tuple[Image, bytes]:
    """The frame that is timed, and the same as an encoded picture."""
    if options.picture is not None:
        return read_image(Path(options.picture)), Path(options.picture).read_bytes()
    frame = _synthetic(options.frame_hw)
    return frame, cv2.imencode(".jpg", frame)[1].tobytes()


def bench(
    artifact: str | PathLike[str] | Backend,
    options: BenchOptions = BenchOptions(),
    *,
    device: str = "auto",
    threads: int | None = None,
    backend_options: BackendOptions = DEFAULT,
    tiles: Tiles | Literal["card"] | None = "card",
    progress: Callable[[int, int], None] | None = None,
) -> BenchTable:
    """Time `artifact` (a model file or a backend) at each batch size of `options`.

    All frames are copies of one. A turn runs one batch end to end, one through the stages, and one through the engine
    alone. `progress(done, total)` is called after each batch size and each number of streams. `device`, `threads`,
    `backend_options` and `tiles`: those of a `Detector`; a batch is of frames, however many tiles these have.

    Raises ValueError for sizes that the graph does not take, and what `Detector` and `read_image` raise.
    """
    detector = Detector(artifact, device=device, threads=threads, options=backend_options, tiles=tiles)
    sizes, streams = _batch_sizes(detector, options.batch_sizes), options.streams
    frame, encoded = first_frame(options)
    path = Path(artifact) if isinstance(artifact, (str, PathLike)) else None
    frames = {size: [frame.copy() for _ in range(size)] for size in sizes}
    batches = [inputs(detector, frames[size])[0][0] for size in sizes]
    shares, nms_how = nms_shares(detector, path, threads, batches)
    rows: list[StageTiming] = []
    ratios: list[BatchRatio] = []
    timed_streams: list[StreamTiming] = []
    done, total = count(1), len(sizes) * (1 + len(streams))
    progress = progress or (lambda done, total: None)
    times = options.max_wait_ms, options.seconds
    for size, share in zip(sizes, shares, strict=True):
        turns = _turns(partial(time_turn, detector, frames[size], [encoded] * size, share), options)
        stages = [stage for stage in (*STAGES, MERGE, WHOLE, BARE) if stage in turns[0]]
        rows += [_timing(size, stage, [turn[stage] for turn in turns]) for stage in stages]
        of_bare = statistics.median(turn[BARE] / turn[WHOLE] for turn in turns)
        overhead = statistics.median(turn[WHOLE] - turn[BARE] for turn in turns)
        ratios.append(BatchRatio(size, of_bare, 1000 * overhead))
        progress(next(done), total)
        bare_per_s = rows[-1].images_per_s
        for number in streams:
            timed_streams.append(time_streams(detector, frames[size], number, size, *times, bare_per_s))
            progress(next(done), total)
    backend = detector.backend
    return BenchTable(
        model=str(artifact) if path is not None else type(artifact).__name__,
        engine=backend.name,
        device=backend.device,
        processor=_processor(),
        threads=threads,
        precision=detector.card.precision,
        frame_hw=(frame.shape[0], frame.shape[1]),
        input_size_hw=detector.input_size_hw,
        inputs_per_frame=len(detector.grid(frame).windows),
        tiles="" if detector.tiles is None else detector.tiles.describe(),
        rows=tuple(rows),
        ratios=tuple(ratios),
        streams=tuple(timed_streams),
        notes=notes(detector, nms_how),
    )


def _batch_sizes(detector: Detector, requested: Sequence[int] | None) -> tuple[int, ...]:
    fixed = detector.backend.fixed_batch
    sizes = tuple(dict.fromkeys(requested or (fixed or 1,)))
    if fixed is not None and any(size != fixed for size in sizes):
        got = ", ".join(map(str, sizes))
        raise ArgumentError.of("batch_sizes", f"the graph takes batches of {fixed} only, got {got}")
    return sizes


def _turns(turn: Callable[[], dict[str, float]], options: BenchOptions) -> list[dict[str, float]]:
    for _ in range(options.warmup):
        turn()
    begun, iterations = time.perf_counter(), options.iterations
    turns: list[dict[str, float]] = []
    while len(turns) < (iterations or 5) or (iterations is None and time.perf_counter() - begun < options.seconds):
        turns.append(turn())
    return turns


def _timing(size: int, stage: str, seconds: list[float]) -> StageTiming:
    p50, p95, p99 = (float(value) * 1000 for value in np.percentile(seconds, [50, 95, 99]))
    mean = statistics.fmean(seconds)
    return StageTiming(size, stage, p50, p95, p99, mean * 1000, size / mean, len(seconds))


def _synthetic(frame_hw: tuple[int, int]) -> Image:
    """A frame of blots of some pixels: a JPEG of plain noise takes several times as long to decode as a photograph."""
    height, width = frame_hw
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def _processor() -> str:
    """The CPU's name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()
