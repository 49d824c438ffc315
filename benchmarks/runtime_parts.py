"""The parts of `benchmarks/runtime_aims.py`: each measures one group of aims and says what came out."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.batcher import BATCH, WAIT_MS, Pretend, SoakResult, bare_rate, resident_mb, soak
from runtime.batcher.batcher import Batcher
from runtime.bench.streams import LOAD, paced, saturated
from runtime.detector import Detector
from runtime.images.image import Image


@dataclass(frozen=True)
class Result:
    """One number and what it is to be."""

    what: str
    value: float
    unit: str
    aim: float
    at_least: bool
    """The aim is a lower bound; else an upper one."""
    detail: str = ""

    @property
    def reached(self) -> bool:
        return self.value >= self.aim if self.at_least else self.value <= self.aim

    def line(self) -> str:
        sign = ">=" if self.at_least else "<="
        return (f"| {self.what} | {self.value:.3g}{self.unit} | {sign} {self.aim:g}{self.unit} "
                f"| {'reached' if self.reached else 'MISSED'} | {self.detail} |")  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What the command line says."""

    folder: Path
    threads: int
    seconds: float
    submits: int
    frames: int
    batch_ms: float
    streams: tuple[int, ...]


def overhead(setting: Setting) -> list[Result]:
    """(a) `Detector` against the bare session, in turns; every detection of the graph is reported."""
    from benchmarks.runtime_networks import float_graph

    rng = np.random.default_rng(0)
    results = []
    for size, batches in ((320, (8, 1)), (640, (1,))):
        path = float_graph(setting.folder, size)
        detector = Detector(path, device="cpu", threshold=0.0, threads=setting.threads)
        session = bare_session(path, setting.threads)
        for batch, (height, width) in product(batches, ((480, 640), (720, 1280), (1080, 1920))):
            frames = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(batch)]
            images = detector.preprocess(frames, [detector.place(frame) for frame in frames])
            runs = [partial(detector, frames), partial(session.run, None, {"images": images})]
            whole, bare = in_turns(runs, setting.seconds if batch == 1 else 2 * setting.seconds)
            found = statistics.fmean(map(len, detector(frames)))
            detail = (f"{1000 * statistics.median(whole):.2f} ms against {1000 * statistics.median(bare):.2f} ms a "
                      f"batch, {len(whole)} turns, {found:.0f} detections a frame")  # fmt: skip
            name = f"{size} px, batch {batch}, frames {width}x{height}"
            if batch == 8:
                ratio = statistics.median(b / w for w, b in zip(whole, bare, strict=True))
                results.append(Result(f"{name}, images/s of the bare session's", 100 * ratio, " %", 95, True, detail))
            else:
                extra = 1000 * statistics.median(w - b for w, b in zip(whole, bare, strict=True))
                results.append(Result(f"{name}, overhead", extra, " ms", 1.0, False, detail))
    return results


def torchvision(setting: Setting) -> list[Result]:
    """(b) `Detector` on the ONNX files against torchvision eager: a picture in memory to detections, in turns."""
    import torch

    from benchmarks.runtime_networks import graphs, picture, planes, torchvision_fcos

    torch.set_num_threads(setting.threads)
    files = graphs(setting.folder)
    ours = {kind: Detector(path, device="cpu", threads=setting.threads, threshold=0.05) for kind, path in files.items()}
    theirs = torchvision_fcos()
    image = picture()

    def eager(batch: int) -> object:
        with torch.inference_mode():
            return theirs([planes(image) for _ in range(batch)])

    results = []
    for batch in (1, 8):
        runs: list[Callable[[], object]] = [
            partial(eager, batch),
            *(partial(d, [image] * batch) for d in ours.values()),
        ]
        tv, *mine = in_turns(runs, 4 * setting.seconds)
        for (kind, aim), times in zip((("fp32", 1.7), ("int8", 3.0)), mine, strict=True):
            ratio = statistics.median(t / m for t, m in zip(tv, times, strict=True))
            mine_ms, tv_ms = (1000 * statistics.median(values) for values in (times, tv))
            detail = f"{mine_ms:.1f} ms against {tv_ms:.1f} ms a batch, {len(tv)} turns"
            results.append(
                Result(f"{kind} ONNX, batch {batch}, images/s of torchvision's", ratio, "x", aim, True, detail)
            )
    return results


def batcher(setting: Setting) -> list[Result]:
    """(c) Throughput and p99 of the batcher, with an engine that sleeps and so leaves the processor free."""
    engine = Pretend(setting.batch_ms / 1000, 320)
    images = [np.zeros((320, 320, 3), np.uint8)]
    bound = WAIT_MS + 2 * setting.batch_ms
    results = []

    def make() -> Batcher:
        return Detector(engine, threshold=0.0).batcher(BATCH, WAIT_MS)

    for streams in setting.streams:
        bare = bare_rate(engine, setting.seconds / 2)
        full, rate = saturated(make, images, streams, setting.seconds)
        calm = paced(make, images, streams, setting.seconds, LOAD * bare)
        results += [
            Result(
                f"{streams} streams, of the engine's full batches", 100 * rate / bare, " %", 90, True,
                f"{rate:.0f} of {bare:.0f} frames/s, mean batch {full.mean_batch:.1f}",
            ),
            Result(
                f"{streams} streams, p99 at {LOAD:.0%} load", calm.p99_ms or 0.0, " ms", bound, False,
                f"p50 {calm.p50_ms:.1f}, p95 {calm.p95_ms:.1f} ms, mean batch {calm.mean_batch:.1f}",
            ),
        ]  # fmt: skip
    return results


def lost(setting: Setting) -> list[Result]:
    """(d) Numbered frames into the batcher, with an engine that answers at once."""
    done: SoakResult = soak(setting.submits, threads=8)
    wrong = done.never + done.more_than_once + done.wrong
    detail = (f"{done.submits} submits in {done.seconds:.0f} s: once {done.once}, more often {done.more_than_once}, "
              f"never {done.never}, another frame's {done.wrong}; "
              f"resident MB {done.resident_mb[1]:.0f} to {done.resident_mb[-1]:.0f}")  # fmt: skip
    return [Result("frames lost, doubled or mistaken", wrong, "", 0, False, detail)]


def memory(setting: Setting) -> list[Result]:
    """(e) Resident memory over many frames of changing sizes: the real path, an engine that answers at once; ONNX
    Runtime on a small graph for a tenth of them."""
    rng = np.random.default_rng(0)
    frames = [
        rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((720, 1280), (480, 640), (320, 320), (99, 7))
    ]
    results = []
    detector = Detector(Pretend(0.0, 320), threshold=0.0)
    results.append(_growth("an engine that answers at once", detector, frames, setting.frames))
    from benchmarks.runtime_networks import graphs

    real = Detector(graphs(setting.folder)["int8"], device="cpu", threads=setting.threads)
    results.append(_growth("ONNX Runtime, the 8-bit file", real, frames, max(200, setting.frames // 50)))
    return results


def _growth(name: str, detector: Detector, frames: list[Image], count: int) -> Result:
    begun = time.perf_counter()
    sizes: list[float] = []
    done, tenths = 0, max(1, count // 10)
    while done < count:
        batch = [frames[(done + i) % len(frames)] for i in range(1 + done % 8)]
        detector(batch)
        done += len(batch)
        if done >= tenths * (len(sizes) + 1):
            sizes.append(resident_mb())
    growth = sizes[-1] - sizes[0]
    return Result(f"growth over {done} frames, {name}", growth, " MB", 2.0, False,
                  f"resident MB after the first tenth {sizes[0]:.1f}, the fifth {sizes[4]:.1f}, the last "
                  f"{sizes[-1]:.1f}; {time.perf_counter() - begun:.0f} s")  # fmt: skip


_IMPORT = "import time; t = time.perf_counter(); import runtime; runtime.Detector; print(time.perf_counter() - t)"
_FIRST = """import sys, time; import numpy as np; from runtime import Detector
frame = np.zeros((720, 1280, 3), np.uint8)
t = time.perf_counter(); detector = Detector(sys.argv[1], device="cpu", threads=int(sys.argv[2]))
loaded = time.perf_counter(); detector(frame); print(time.perf_counter() - loaded, time.perf_counter() - t)"""


def start(setting: Setting) -> list[Result]:
    """(f) Fresh processes, files in the page cache: the median of seven."""
    from benchmarks.runtime_networks import graphs

    path = str(graphs(setting.folder)["fp32"])
    imports = [_fresh(_IMPORT)[0] for _ in range(8)][1:]
    firsts = [_fresh(_FIRST, path, str(setting.threads)) for _ in range(8)][1:]
    from_load = statistics.median(whole for _, whole in firsts)
    after = statistics.median(first for first, _ in firsts)
    slowest = f"worst {max(imports):.3f} s"
    return [
        Result("import of runtime.Detector", statistics.median(imports), " s", 0.3, False, slowest),
        Result("first result, loading included", from_load, " s", 2.0, False,
               f"after loading {after:.3f} s; worst {max(whole for _, whole in firsts):.3f} s"),
    ]  # fmt: skip


def _fresh(program: str, *arguments: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    return [float(value) for value in done.stdout.split()]


PARTS: dict[str, Callable[[Setting], list[Result]]] = {
    "overhead": overhead, "torchvision": torchvision, "batcher": batcher, "soak": lost, "memory": memory,
    "start": start,
}  # fmt: skip


def bare_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def in_turns(runs: Sequence[Callable[[], object]], seconds: float) -> list[list[float]]:
    """Seconds of each of `runs`, one after the other, over and over, after two turns that do not count."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(2):
        for run in runs:
            run()
    begun = time.perf_counter()
    while len(times[0]) < 10 or time.perf_counter() - begun < seconds:
        for run, mine in zip(runs, times, strict=True):
            started = time.perf_counter()
            run()
            mine.append(time.perf_counter() - started)
    return times
