"""TensorRT-RTX engines of the three detectors: built, run by `Detector`, scored, and timed against everything else.

TensorRT-RTX is for GeForce and RTX cards; whether it runs on a data center's is the first question, and its own words
are the answer (`engine_ways`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import export
from benchmarks.gpu.artifacts import (
    Subject,
    digits,
    exported,
    folder,
    has_onnxslim,
    same_detections,
    scored,
    untrained,
)  # fmt: skip
from benchmarks.gpu.bare_engine import BareEngine
from benchmarks.gpu.eager import BATCHES, SHARE_OF_FP16
from benchmarks.gpu.engine_ways import WAYS, fresh, plan_for
from benchmarks.gpu.machine import ceiling
from benchmarks.gpu.networks import R18, R50, TINY, forward_flops, label, network_config
from benchmarks.gpu.speed import PYTORCH, Run, speeds
from benchmarks.gpu.stage import NotHere, Row, Setting, one_line
from benchmarks.untrained import calm_network
from export.options import Precision
from runtime import BackendOptions, Detections, Detector
from runtime.backends.load import load_backend
from runtime.backends.protocol import BackendError
from runtime.backends.trt.library import Library, load_library

PRECISIONS: tuple[Precision, ...] = ("fp16", "fp32", "int8")
BATCH = (1, 8, 64)
"""Images that an engine is built for: least, tuned for, most."""
LARGE_BATCH = (1, 4, 16)


def rows(setting: Setting) -> Iterator[Row]:
    setting.require_device()
    try:
        library = load_library("rtx")
    except BackendError as error:
        raise NotHere(f"{one_line(error)}; benchmarks/gpu/carry.sh rtx brings it") from None
    targets = [name for name in dir(library.trt.ComputeCapability) if name.startswith("SM")]
    yield Row("library", library.name, note=f"it builds for {', '.join(targets)}")
    if not has_onnxslim():
        yield Row("graphs", "not simplified", note="no onnxslim here; benchmarks/gpu/carry.sh small brings it")
    config = network_config(TINY if setting.small else R18)
    subject, why = digits(setting)
    if subject is None:
        yield Row("mAP", None, note=f"{why}; detections of random weights are compared with PyTorch's")
        subject = untrained(setting, config)
    started = time.perf_counter()
    try:
        graph, note = exported(setting, subject, "fp16")
    except (export.ExportError, ImportError) as error:
        raise NotHere(f"no engine without an ONNX file: {one_line(error)}") from None
    yield Row(f"{subject.name} fp16: checkpoint to ONNX", time.perf_counter() - started, "s", note=note)
    yield from tried(setting, library, graph)
    yield from judged(setting, subject)
    yield from timed(setting, library, subject, BATCH, [b for b in BATCHES if not setting.small or b <= 2])
    yield from cold_start(setting, subject)
    for detector in ("fcos", "retinanet"):
        yield from judged(setting, untrained(setting, network_config(TINY if setting.small else R18, detector)))
    if not setting.small and setting.left() > 60:
        yield from large(setting, library)


def tried(setting: Setting, library: Library, graph: Path) -> Iterator[Row]:
    """Whether the library runs its engines on this card. Raises `NotHere` where it runs the default ones not.

    Without a GPU the engine is built and nothing more.
    """
    accepted: list[str] = []
    for i, (name, capabilities) in enumerate(WAYS.items()):
        what = f"engine for {name}"
        if setting.left() < 15:
            yield Row(what, None, note="no time left")
            break
        started = time.perf_counter()
        try:
            plan = plan_for(library, graph, capabilities, BATCH)
        except (export.ExportError, TypeError) as error:  # TypeError: what the bindings make of a null pointer
            yield Row(what, f"not built: {one_line(error)}")
            continue
        seconds = time.perf_counter() - started
        yield Row(f"{what}: build", seconds, "s", note=f"{len(plan) / 2**20:.1f} MB, by the library's calls alone")
        setting.require_cuda()
        path = folder(setting) / f"way-{i}.engine"
        path.write_bytes(plan)
        said = fresh(path, max(5.0, min(60.0, setting.left() - 10)))
        note = f"the library's judgment of it: {said.get('validity', 'none')}"
        if "refused" in said:
            yield Row(what, f"refused: {said['refused']}", note=note)
            continue
        yield Row(what, f"runs: {said['milliseconds']:.3f} ms a picture", note=note)
        accepted.append(name)
        if not capabilities:
            return
    answer = own_answer(setting, graph)
    yield Row("our runtime on the engine for SM80", answer)
    raise NotHere(f"{library.name} does not run its default engines on this card"
                  + (f", but those for {', '.join(accepted)}" if accepted else "; what it says is above"))  # fmt: skip


def own_answer(setting: Setting, graph: Path) -> str:
    """What `Detector` says of an engine for SM80, which it refuses by its card and not by asking the library."""
    out = folder(setting) / "sm80.engine"
    try:
        export.to_engine(graph, out, export.EngineOptions(engine="rtx", sm=(80,)), export.Gate(verify=False))
        return f"runs on {Detector(out).runs_on}"
    except (BackendError, export.ExportError) as error:
        return one_line(error)


def engine_file(setting: Setting, subject: Subject, precision: Precision, batch: tuple[int, int, int]) -> Path:
    """The engine of that precision, built once, as `exporter trt` builds it."""
    graph, _ = exported(setting, subject, precision)
    out = graph.with_suffix(".engine")
    if not out.exists() or out.stat().st_mtime < graph.stat().st_mtime:
        options = export.EngineOptions(engine="rtx", batch=batch)
        export.to_engine(graph, out, options, export.Gate(verify=False))
    return out


def judged(setting: Setting, subject: Subject) -> Iterator[Row]:
    """In every precision: build, and mAP or detections against PyTorch's."""
    for precision in PRECISIONS:
        what = f"{subject.name} {precision}"
        if setting.left() < 25:
            yield Row(what, None, note="no time left")
            continue
        started = time.perf_counter()
        try:
            engine = engine_file(setting, subject, precision, BATCH)
            seconds, size = time.perf_counter() - started, engine.stat().st_size / 2**20
            yield Row(f"{what}: export, build and audit", seconds, "s", note=f"{size:.1f} MB")
            if subject.dataset is not None:
                yield scored(what, subject, engine, "cuda")
            else:
                yield same_detections(what, subject, precision, Detector(engine, "cuda", threshold=0.0))
        except (BackendError, export.ExportError, export.AuditError, export.VerifyError, ImportError) as error:
            yield Row(what, None, note=one_line(error))


def timed(
    setting: Setting, library: Library, subject: Subject, profile: tuple[int, int, int], batches: Sequence[int]
) -> Iterator[Row]:
    """The float16 engine under `Detector`, under the backend with CUDA graphs and alone, beside PyTorch."""
    what = f"{subject.name} fp16 engine"
    try:
        engine = engine_file(setting, subject, "fp16", profile)
        ways = contestants(engine, subject)
        yield from speeds(setting, what, subject, batches, ways)
        plain, recorded = (BareEngine(library, engine.read_bytes(), 1, graphs=graphs) for graphs in (False, True))
        for batch in batches:
            if setting.left() < 15:
                yield Row(f"{what}, batch {batch}: bare, on the device", None, note="no time left")
                return
            for one in (plain, recorded):
                one.set_batch(batch)
            milliseconds, graph_ms = plain.milliseconds(0.3), recorded.milliseconds(0.3)
            yield Row(f"{what}, batch {batch}: bare, on the device", 1000 * batch / milliseconds, "images/s",
                      note=f"{milliseconds:.3f} ms, and {graph_ms:.3f} ms as a CUDA graph")  # fmt: skip
    except (BackendError, export.ExportError, export.AuditError) as error:
        yield Row(what, None, note=one_line(error))


def contestants(engine: Path, subject: Subject) -> dict[str, Run]:
    """Ways to run it. Raises `BackendError`."""
    detector = Detector(engine, "cuda", threshold=0.5)
    plain = load_backend(engine, "cuda")
    graphs = load_backend(engine, "cuda", options=BackendOptions(cuda_graphs=True))
    eager = load_backend(subject.checkpoint, "cuda", options=BackendOptions(autocast="fp16"))

    def detect(images: NDArray[np.uint8]) -> list[Detections]:
        return detector(list(images))

    return {"Detector": detect, "backend": plain, "backend, CUDA graphs": graphs, PYTORCH: eager}


def cold_start(setting: Setting, subject: Subject) -> Iterator[Row]:
    """Seconds of the first load in a fresh process, without RTX's cache of compiled kernels and with it."""
    cache = folder(setting) / "runtime.cache"
    cache.unlink(missing_ok=True)
    try:
        engine = engine_file(setting, subject, "fp16", BATCH)
    except (BackendError, export.ExportError, export.AuditError) as error:
        yield Row("cold start", None, note=one_line(error))
        return
    for name, given in (
        ("without a runtime cache", None), ("writing the runtime cache", cache), ("with the runtime cache", cache),
    ):  # fmt: skip
        what = f"{subject.name} fp16: cold start {name}"
        if setting.left() < 25:
            yield Row(what, None, note="no time left")
            return
        said: dict[str, Any] = fresh(engine, max(5.0, setting.left() - 10), cache=given)
        if "refused" in said:
            yield Row(what, None, note=said["refused"])
            continue
        note = ", ".join(f"{step} {seconds:.2f} s" for step, seconds in said["seconds"].items())
        size = f"; the cache is {said['cache_bytes'] / 2**20:.2f} MB" if "cache_bytes" in said else ""
        yield Row(what, sum(said["seconds"].values()), "s", note=note + size)


def large(setting: Setting, library: Library) -> Iterator[Row]:
    """The published ATSS in float16: images a second, and what share of the card's ceiling that is."""
    config = network_config(R50)
    subject = untrained(setting, config)
    yield from timed(setting, library, subject, LARGE_BATCH, (1, 4, 8))
    what = f"{subject.name} fp16 engine: share of the card's ceiling"
    top = ceiling(setting.work, "fp16")
    if top is None or setting.left() < 15:
        yield Row(what, None, note="the stage machine did not run" if top is None else "no time left")
        return
    flops = forward_flops(calm_network(config))
    try:
        plan = engine_file(setting, subject, "fp16", LARGE_BATCH).read_bytes()
        engine, shares = BareEngine(library, plan, 1), {}
        for batch in (1, 4, 8, 16):
            engine.set_batch(batch)
            seconds = engine.milliseconds(0.3) / 1000
            shares[batch] = 100 * flops * batch / seconds / 1e12 / top
    except (BackendError, export.ExportError, export.AuditError) as error:
        yield Row(what, None, note=one_line(error))
        return
    best = max(shares, key=lambda batch: shares[batch])
    yield Row(what, shares[best], "%", least=SHARE_OF_FP16, note=f"{label(config)} at batch {best}")
