"""How fast a model runs here: letterbox, engine, and the way back to frame pixels, one by one and together."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

import numpy as np

from runtime.backends import Backend
from runtime.detector import Detector
from runtime.image import Image, read_image

STAGES = ("letterbox", "engine", "postprocess", "end-to-end")


@dataclass(frozen=True)
class StageTiming:
    """One stage at one batch size; milliseconds for the whole batch."""

    batch_size: int
    stage: str
    """letterbox (frames to input), engine (the graph), postprocess (boxes to frames), end-to-end (all three)."""
    p50_ms: float
    p95_ms: float
    images_per_s: float
    """Batch size over the mean time."""
    iterations: int


@dataclass(frozen=True)
class BenchTable:
    """Timings of one model on one machine."""

    model: str
    engine: str
    device: str
    processor: str
    threads: int | None
    """CPU threads of the engine; None is its own choice."""
    precision: str
    frame_hw: tuple[int, int]
    input_size_hw: tuple[int, int]
    rows: tuple[StageTiming, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready object; times have 3 decimals."""
        content = asdict(self)
        content["frame_hw"], content["input_size_hw"] = list(self.frame_hw), list(self.input_size_hw)
        content["rows"] = [
            {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
            for row in content["rows"]
        ]
        return content

    def table(self) -> str:
        """The timings as text."""
        frame, size = "x".join(map(str, self.frame_hw)), "x".join(map(str, self.input_size_hw))
        threads = "its own choice of threads" if self.threads is None else f"{self.threads} threads"
        lines = [
            f"{self.model}: {self.precision}, input {size}, frames {frame} (height x width)",
            f"{self.engine} on {self.device} ({self.processor}), {threads}",
            "",
            f"{'batch':>5}  {'stage':<12}{'p50 ms':>10}{'p95 ms':>10}{'images/s':>11}{'runs':>7}",
        ]
        for row in self.rows:
            batch = str(row.batch_size) if row.stage == STAGES[0] else ""
            times = f"{row.p50_ms:>10.2f}{row.p95_ms:>10.2f}{row.images_per_s:>11.1f}{row.iterations:>7}"
            lines.append(f"{batch:>5}  {row.stage:<12}{times}")
        return "\n".join(lines)


def bench(
    artifact: str | PathLike[str] | Backend,
    batch_sizes: Sequence[int] | None = None,
    frame_hw: tuple[int, int] = (720, 1280),
    picture: str | PathLike[str] | None = None,
    seconds: float = 3.0,
    iterations: int | None = None,
    warmup: int = 3,
    device: str = "auto",
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> BenchTable:
    """Time `artifact` (a model file or a backend) at each of `batch_sizes` (default: 1, or the graph's fixed batch).

    Frames are copies of `picture`, or synthetic ones of `frame_hw` pixels (noise, the same every time). Each
    batch size runs `warmup` batches untimed, then `iterations` batches, or for `seconds` and at least 5.
    `progress(done, total)` is called after each batch size.

    Raises ValueError for impossible sizes, and what `Detector` and `read_image` raise.
    """
    detector = Detector(artifact, device=device, threads=threads)
    fixed = detector.backend.fixed_batch
    sizes = tuple(batch_sizes or (fixed or 1,))
    if min(sizes) < 1:
        raise ValueError(f"batch sizes: expected at least 1, got {min(sizes)}")
    if fixed is not None and any(size != fixed for size in sizes):
        raise ValueError(f"batch sizes: the graph takes batches of {fixed} only, got {', '.join(map(str, sizes))}")
    if seconds <= 0 or warmup < 0 or (iterations is not None and iterations < 1):
        raise ValueError(f"expected seconds > 0, warmup >= 0, iterations >= 1; got {seconds}, {warmup}, {iterations}")
    frame = read_image(str(picture)) if picture is not None else _synthetic(frame_hw)
    rows: list[StageTiming] = []
    for done, size in enumerate(sizes, start=1):
        times = _time(detector, [frame] * size, seconds, iterations, warmup)
        for stage, column in zip(STAGES, times.T, strict=True):
            p50, p95 = np.percentile(column, [50, 95]) * 1000
            rate = size / float(column.mean())
            rows.append(StageTiming(size, stage, float(p50), float(p95), rate, len(column)))
        if progress is not None:
            progress(done, len(sizes))
    backend = detector.backend
    return BenchTable(
        model=str(artifact) if isinstance(artifact, (str, PathLike)) else type(artifact).__name__,
        engine=backend.name,
        device=backend.device,
        processor=_processor(),
        threads=threads,
        precision=detector.card.precision,
        frame_hw=(frame.shape[0], frame.shape[1]),
        input_size_hw=detector.input_size_hw,
        rows=tuple(rows),
    )


def _time(
    detector: Detector, frames: list[Image], seconds: float, iterations: int | None, warmup: int
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Seconds [iterations, 4], one column for each of STAGES."""
    rows: list[tuple[float, ...]] = []
    started = 0.0
    run = -warmup
    while True:
        if run == 0:
            started = time.perf_counter()
        a = time.perf_counter()
        images, placements = detector.preprocess(frames)
        b = time.perf_counter()
        raw = detector.backend(images)
        c = time.perf_counter()
        detector.postprocess(raw, placements, detector.threshold)
        d = time.perf_counter()
        if run >= 0:
            rows.append((b - a, c - b, d - c, d - a))
        run += 1
        if run >= (iterations or 5) and (iterations is not None or d - started >= seconds):
            return np.array(rows)


def _synthetic(frame_hw: tuple[int, int]) -> Image:
    if min(frame_hw) < 1:
        raise ValueError(f"frame size: expected at least 1x1 pixel, got {frame_hw[0]}x{frame_hw[1]}")
    return np.random.default_rng(0).integers(0, 256, (*frame_hw, 3), dtype=np.uint8)


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
