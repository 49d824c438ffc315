"""`Detector` with the PyTorch backend: what it costs beside the bare module, in every form that it can be asked for.

The bare module is given the same uint8 arrays, copies them over, and copies its outputs back; it neither letterboxes
nor makes `Detections`.
"""

from __future__ import annotations

import resource
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu.attempts import attempt, free, until_one_fails
from benchmarks.gpu.machine import ceiling
from benchmarks.gpu.networks import R18, R50, SMALL_R50, TINY, backend, forward_flops, label, network_config
from benchmarks.gpu.stage import Row, Setting, one_line
from benchmarks.gpu.timing import median, ratio, turns
from benchmarks.untrained import calm_network
from models.config.model import ModelConfig
from runtime import BackendOptions, Detections, Detector
from runtime.backends.protocol import BackendError
from runtime.backends.torch.backend import TorchBackend

BATCHES = (1, 2, 4, 8, 16, 32, 64)
FORM_BATCHES = (1, 8, 64)
DETECTOR_OVER_BARE = 0.95
SHARE_OF_FP16 = 30.0
"""Per cent of the card's float16 ceiling that R50 is to use at its best batch."""
FLAT_MB = 32.0
"""Memory that may be more after 20,000 frames than after 2,000: allocators round, and a thread's arena settles."""
STREAMS = 64


def rows(setting: Setting) -> Iterator[Row]:
    setting.require_device()
    light = network_config(TINY if setting.small else R18)
    large = network_config(SMALL_R50 if setting.small else R50)
    yield from over_bare(setting, large)
    yield from over_bare(setting, light)
    yield from ceiling_share(setting, large)
    yield from forms(setting, light)
    yield from attempt(setting, "frames from other places", 15, lambda _: sources(setting, light))
    yield from attempt(setting, "two detectors, four threads", 15, lambda _: together(setting, light))
    yield from attempt(setting, "batcher", 15, lambda _: batcher(setting, light))
    yield from attempt(setting, "memory over many frames", 15, lambda _: flat(setting, light))


def pictures(config: ModelConfig, count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, *config.input_size_hw, 3), dtype=np.uint8)


def bare(whole: TorchBackend, images: NDArray[np.uint8]) -> list[torch.Tensor]:
    """The module and the two copies, and nothing of ours."""
    with torch.no_grad():
        return [output.cpu() for output in whole.model(torch.from_numpy(images).to(whole.device))]


def over_bare(setting: Setting, config: ModelConfig) -> Iterator[Row]:
    """Detector over the bare module, float32 (on a GPU with TensorFloat-32, as PyTorch does by itself)."""
    engine = backend(calm_network(config), setting.device)
    engine.max_batch = max(BATCHES)
    detector = Detector(engine, threshold=0.5)

    def measured(batch: int, what: str) -> Iterator[Row]:
        images = pictures(config, batch)
        calls: dict[str, Callable[[], Any]] = {
            "bare": partial(bare, engine, images),
            "detector": partial(detector, list(images)),
        }
        taken = turns(calls, 1.0 if not setting.small else 0.1, setting.device)
        rates = {name: batch / statistics.median(seconds) for name, seconds in taken.items()}
        note = f"{rates['detector']:.0f} and {rates['bare']:.0f} images/s"
        least = DETECTOR_OVER_BARE if batch == 8 else None
        yield Row(what, ratio(taken["bare"], taken["detector"]), least=least, note=note)

    yield from until_one_fails(
        attempt(setting, f"{label(config)}, batch {batch}: Detector over bare module", 20, partial(measured, batch))
        for batch in ((1, 2) if setting.small else BATCHES)
    )


def ceiling_share(setting: Setting, config: ModelConfig) -> Iterator[Row]:
    """What share of the card's float16 ceiling the network alone reaches, at its best batch."""
    what = f"{label(config)}, float16: share of the card's ceiling"
    top = ceiling(setting.work, "fp16")
    if setting.device == "cpu":
        yield Row(what, None, note="float16 is for a GPU")
        return
    if top is None:
        yield Row(what, None, note="the stage machine did not run")
        return
    shares: list[float] = []
    torch.backends.cudnn.benchmark = True  # one size of picture: its search pays at once
    yield from module_alone(setting, config, top, shares)
    torch.backends.cudnn.benchmark = False  # as it is for who asks for nothing
    free(setting)
    if shares:
        yield Row(what, max(shares), "%", least=SHARE_OF_FP16, note="at its best batch")


def module_alone(setting: Setting, config: ModelConfig, top: float, shares: list[float]) -> Iterator[Row]:
    """Its images a second in float16 at every batch, pictures on the device; per cent of `top` go into `shares`."""
    network = calm_network(config)
    flops = forward_flops(network)
    whole = backend(network, setting.device, BackendOptions(channels_last=True))
    module = whole.model.halve()  # Deploy: float16 up to the raw outputs, as exported

    def measured(batch: int, what: str) -> Iterator[Row]:
        there = torch.from_numpy(pictures(config, batch)).to(setting.device)
        with torch.no_grad():
            seconds = median(partial(module, there), 0.7, setting.device)
        shares.append(100 * flops * batch / seconds / 1e12 / top)
        yield Row(what, batch / seconds, "images/s", note=f"{shares[-1]:.1f} % of {top:.0f} TFLOP/s")

    yield from until_one_fails(
        attempt(setting, f"{label(config)}, float16, batch {batch}: the module alone", 20, partial(measured, batch))
        for batch in BATCHES
    )


def forms(setting: Setting, config: ModelConfig) -> Iterator[Row]:
    """Precisions, channels last, CUDA graphs, torch.compile: speed beside the default, and whether boxes move."""
    network = calm_network(config)
    plain = Detector(backend(network, setting.device), threshold=0.05)
    choices = {
        "autocast bf16": BackendOptions(autocast="bf16"), "autocast fp16": BackendOptions(autocast="fp16"),
        "channels_last": BackendOptions(channels_last=True), "cuda_graphs": BackendOptions(cuda_graphs=True),
        "cuda_graphs, autocast fp16, channels_last": BackendOptions(
            cuda_graphs=True, autocast="fp16", channels_last=True
        ),
        "compile": BackendOptions(compile=True),
    }  # fmt: skip
    for name, options in choices.items():
        if setting.small and options.compile:
            continue  # a CPU compiles for minutes
        try:
            other = Detector(backend(calm_network(config), setting.device, options), threshold=0.05)
        except BackendError as error:
            yield Row(f"{label(config)}: {name}", None, note=one_line(error))
            continue
        other.backend.max_batch = plain.backend.max_batch = max(FORM_BATCHES)
        for batch in FORM_BATCHES if not setting.small else (2,):
            compared = partial(beside, setting, plain, other, list(pictures(config, batch)))
            yield from attempt(
                setting, f"{label(config)}, batch {batch}: {name}", 60 if options.compile else 15, compared
            )


def beside(
    setting: Setting, plain: Detector, other: Detector, images: list[NDArray[np.uint8]], what: str
) -> Iterator[Row]:
    """How many times as fast as the default another form is, and how its detections differ."""
    found, expected = other(images), plain(images)
    calls: dict[str, Callable[[], Any]] = {"plain": partial(plain, images), "other": partial(other, images)}
    taken = turns(calls, 0.5 if not setting.small else 0.1, setting.device)
    rate = len(images) / statistics.median(taken["other"])
    note = f"{rate:.0f} images/s; {apart(found, expected)}"
    yield Row(what, ratio(taken["plain"], taken["other"]), "times as fast", note=note)


def apart(found: Sequence[Detections], expected: Sequence[Detections]) -> str:
    """How two runs' detections differ: counts, and scores in their order."""
    counts = sum(len(d) for d in found), sum(len(d) for d in expected)
    pairs = [(a.scores[: len(b)], b.scores[: len(a)]) for a, b in zip(found, expected, strict=True)]
    largest = max((float(np.abs(a - b).max()) for a, b in pairs if len(a)), default=0.0)
    return f"{counts[0]} boxes, {counts[1]} by default; scores differ by at most {largest:.1e}"


def sources(setting: Setting, config: ModelConfig) -> Iterator[Row]:
    """Frames from ordinary memory, page-locked, and on the device as PyTorch, CuPy and DLPack hand them over."""
    batch = setting.amount(16, 2)
    images = pictures(config, batch)
    detector = Detector(backend(calm_network(config), setting.device), threshold=0.05)
    expected = detector(list(images))
    frames: dict[str, Callable[[], Sequence[Any]]] = {"ordinary memory": partial(list, images)}
    if setting.device == "cuda":
        locked = torch.from_numpy(images).pin_memory()
        there = torch.from_numpy(images).cuda()
        frames["page-locked memory"] = partial(list, locked.numpy())
        frames["PyTorch tensors on the device"] = partial(list, there)
        frames["DLPack of PyTorch tensors, taken by CuPy"] = partial(through_dlpack, there)
        frames["CuPy arrays on the device"] = partial(cupy_frames, images)
    for name, make in frames.items():
        what = f"{label(config)}, batch {batch}: frames from {name}"
        try:
            given = make()
        except ImportError as error:
            yield Row(what, None, note=str(error))
            continue
        found = detector(list(given))
        same = all(np.array_equal(a.boxes_xyxy, b.boxes_xyxy) for a, b in zip(found, expected, strict=True))
        seconds = median(partial(detector, list(given)), 0.7 if not setting.small else 0.1, setting.device)
        yield Row(what, batch / seconds, "images/s", note="the same boxes" if same else apart(found, expected))


def through_dlpack(there: torch.Tensor) -> list[Any]:
    import cupy

    return [cupy.from_dlpack(frame) for frame in there]


def cupy_frames(images: NDArray[np.uint8]) -> list[Any]:
    import cupy

    return [cupy.asarray(image) for image in images]


def together(setting: Setting, config: ModelConfig) -> Iterator[Row]:
    """Two detectors and four threads on one device: every thread gets what it gets alone."""
    batch, calls = setting.amount(4, 1), setting.amount(50, 3)
    images = pictures(config, 4 * batch).reshape(4, batch, *config.input_size_hw, 3)
    detectors = [Detector(backend(calm_network(config), setting.device), threshold=0.05) for _ in range(2)]
    expected = [detectors[0](list(part)) for part in images]
    wrong: list[str] = []

    def work(thread: int) -> None:
        for _ in range(calls):
            found = detectors[thread % 2](list(images[thread]))
            if not all(np.allclose(a.scores, b.scores, atol=1e-5) and len(a) == len(b)
                       for a, b in zip(found, expected[thread], strict=True)):  # fmt: skip
                wrong.append(apart(found, expected[thread]))

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(4)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=max(1.0, setting.left() - 5))
    seconds, stuck = time.perf_counter() - started, sum(thread.is_alive() for thread in threads)
    note = f"{4 * batch * calls / seconds:.0f} images/s; {stuck} threads stuck; {wrong[0] if wrong else 'all the same'}"
    yield Row("two detectors, four threads: calls that gave something else", len(wrong) + stuck, most=0, note=note)


def batcher(setting: Setting, config: ModelConfig) -> Iterator[Row]:
    """Frames of 64 streams, one by one, into one engine: every answer is that frame's own."""
    streams, each = setting.amount(STREAMS, 4), setting.amount(40, 3)
    images = pictures(config, streams)
    detector = Detector(backend(calm_network(config), setting.device), threshold=0.05)
    alone = [detector(image)[0] for image in images]
    with detector.batcher(max_batch=32, max_wait_ms=4, queue=4 * streams) as queue:
        started = time.perf_counter()
        futures = [(i, queue.submit(images[i], stream=str(i))) for _ in range(each) for i in range(streams)]
        wrong = sum(not matches(future.result(timeout=max(1.0, setting.left())), alone[i]) for i, future in futures)
        seconds = time.perf_counter() - started
    yield Row(f"batcher, {streams} streams: frames with another's answer", wrong, most=0,
              note=f"{len(futures) / seconds:.0f} images/s")  # fmt: skip


def matches(found: Detections, expected: Detections) -> bool:
    """Of one picture alone and in a batch, whose sums are made in another order."""
    shared = min(len(found), len(expected))
    return abs(len(found) - len(expected)) <= 1 and bool(
        np.allclose(found.scores[:shared], expected.scores[:shared], atol=5e-3)
    )


def flat(setting: Setting, config: ModelConfig) -> Iterator[Row]:
    """Memory over many frames, on the device and in the process."""
    batch, total = 16, setting.amount(20_000, 320)
    detector = Detector(backend(calm_network(config), setting.device), threshold=0.05)
    images = list(pictures(config, batch))
    begun: tuple[float, float] | None = None
    done = 0
    while done < total:
        detector(images)
        done += batch
        if begun is None and done >= total // 10:
            begun = memory_mb(setting.device)
        if setting.left() < 8:
            break
    if begun is None:
        yield Row(f"memory after {done} frames", None, note=f"no time left for {total}")
        return
    now = memory_mb(setting.device)
    for name, before, after in zip(("the device", "the process"), begun, now, strict=True):
        yield Row(f"memory of {name} after {done} frames, more than after a tenth", after - before, "MB", most=FLAT_MB,
                  note=f"{after:.0f} MB")  # fmt: skip


def memory_mb(device: str) -> tuple[float, float]:
    """What the allocator holds on the device, and what the process has in memory."""
    held = torch.cuda.memory_reserved() / 2**20 if device == "cuda" else 0.0
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    return held, resident
