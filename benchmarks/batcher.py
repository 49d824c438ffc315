"""The batcher under load, with an engine that only pretends: soak, throughput, latency.

    python benchmarks/batcher.py [--submits 1000000] [--seconds 10] [--streams 1 4 16 64] [--batch-ms 8]

Soak: frames that carry a number go through an engine that answers at once with that number; each answer has to be that
of its frame, each frame has to be answered once, and the process must not grow. Throughput: the engine sleeps
`--batch-ms` for a batch of any size; S threads submit as fast as they may, against the same engine called with full
batches by a loop. Latency: S threads submit at a steady rate, together 80 % of the engine's, from the call of `submit`
to the answer; the bound is max_wait + 2 batches. An engine that sleeps leaves the processor to the batcher, as one on
a GPU does. The processor's time for a frame is that of all threads: letterbox, queue, stacking, detections, answer.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends.protocol import Backend, RawOutputs
from runtime.batcher.batcher import Batcher
from runtime.bench.streams import LOAD, paced, saturated
from runtime.card.card import Card
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.images.image import Image

BATCH, WAIT_MS = 16, 4.0
NUMBERS = 1 << 24


class Pretend(Backend):
    """An engine of `seconds` for a batch; its answer for an image is the number in the first pixel, as the score."""

    name, device = "pretend", "cpu"
    fixed_batch: int | None = None

    def __init__(self, seconds: float, size: int) -> None:
        self.card = Card(
            kind="onnx", classes=("object",), input_size_hw=(size, size), score_threshold=0.05,
            nms={"kind": "portable", "iou": 0.6, "candidates": 10, "detections": 1},
        )  # fmt: skip
        self.max_batch = BATCH
        self.seconds = seconds
        self._box = np.array([[[1, 1, 5, 5]]], np.float32)

    def __call__(self, images: Any) -> RawOutputs:
        if self.seconds:
            time.sleep(self.seconds)
        count = len(images)
        numbers = images[:, 0, 0].astype(np.int64) @ np.array([1, 256, 65536])
        scores = (numbers / NUMBERS).astype(np.float32)[:, None]
        boxes = np.repeat(self._box, count, axis=0)
        return RawOutputs(np.ones((count, 1), np.int32), boxes, scores, np.zeros((count, 1), np.int32))


def numbered(number: int) -> Image:
    return np.full((8, 8, 3), (number & 255, number >> 8 & 255, number >> 16 & 255), np.uint8)


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass(frozen=True)
class SoakResult:
    """How often the frames of a soak were answered."""

    submits: int
    once: int
    more_than_once: int
    never: int
    wrong: int
    """Answered with another frame's number."""
    seconds: float
    mean_batch: float
    resident_mb: list[float]
    """At the beginning of each tenth, and at the end."""


def soak(submits: int, threads: int) -> SoakResult:
    """Submit `submits` numbered frames from `threads` threads and count how often each is answered, and with what."""
    answers = np.zeros(submits, np.uint8)
    wrong = [0] * threads
    lock = threading.Lock()
    memory: list[float] = []
    detector = Detector(Pretend(0.0, 8), threshold=0.0)

    def camera(stream: int) -> None:
        for number in range(stream, submits, threads):

            def answered(future: Future[Detections], number: int = number) -> None:
                got = round(float(future.result().scores[0]) * NUMBERS)
                with lock:
                    answers[number] += 1
                    wrong[stream] += got != number % NUMBERS

            batcher.submit(numbered(number), stream).add_done_callback(answered)
            if stream == 0 and number // threads % max(1, submits // threads // 10) == 0:
                memory.append(resident_mb())
                print(f"soak: {number} of {submits}", file=sys.stderr)

    begun = time.perf_counter()
    with detector.batcher(BATCH, WAIT_MS) as batcher:
        run_all([threading.Thread(target=camera, args=(s,)) for s in range(threads)])
    seconds = time.perf_counter() - begun
    once, more = int((answers == 1).sum()), int((answers > 1).sum())
    memory.append(resident_mb())
    return SoakResult(
        submits, once, more, submits - once - more, sum(wrong), seconds, batcher.metrics().mean_batch, memory
    )


def bare_rate(engine: Pretend, seconds: float) -> float:
    """Images per second of the engine alone, called with full batches."""
    images = np.zeros((BATCH, *engine.card.input_size_hw, 3), np.uint8)
    done, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        engine(images)
        done += BATCH
    return done / (time.perf_counter() - begun)


def run_all(threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--submits", type=int, default=1_000_000, help="frames of the soak, at most 2**24; 0 for none")
    parser.add_argument("--soak-threads", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each row of the table")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--batch-ms", type=float, default=8.0, help="time of the pretended engine for a batch")
    parser.add_argument("--size", type=int, default=320, help="the network's input; frames are of this size, too")
    arguments = parser.parse_args()
    if arguments.submits:
        done = soak(arguments.submits, arguments.soak_threads)
        print(f"soak: {done.submits} frames of {arguments.soak_threads} threads in {done.seconds:.0f} s: answered once "
              f"{done.once}, more than once {done.more_than_once}, never {done.never}, another frame's {done.wrong}; "
              f"mean batch {done.mean_batch:.1f}")  # fmt: skip
        print(f"soak: resident MB after each tenth: {', '.join(f'{m:.0f}' for m in done.resident_mb)}")
    engine = Pretend(arguments.batch_ms / 1000, arguments.size)
    image = np.zeros((arguments.size, arguments.size, 3), np.uint8)

    def batcher() -> Batcher:
        return Detector(engine, threshold=0.0).batcher(BATCH, WAIT_MS)

    bound = WAIT_MS + 2 * arguments.batch_ms
    print(f"\nbatches of {BATCH}, max_wait {WAIT_MS:g} ms, engine {arguments.batch_ms:g} ms a batch, "
          f"{arguments.size} px; p99 is to be at most {bound:g} ms")  # fmt: skip
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    print(f"\n{'streams':>7}{'bare/s':>9}{'batcher/s':>11}{'ratio':>7}{'mean batch':>12}{'CPU us/frame':>14}"
          f"{'at 80 %: p50':>14}{'p95':>7}{'p99 ms':>8}{'batch':>7}")  # fmt: skip
    for streams in arguments.streams:
        bare = bare_rate(engine, arguments.seconds / 2)
        busy = time.process_time()
        full, rate = saturated(batcher, [image], streams, arguments.seconds)
        cost = (time.process_time() - busy) / full.answered * 1e6
        calm = paced(batcher, [image], streams, arguments.seconds, LOAD * bare)
        p50, p95, p99 = calm.p50_ms or 0.0, calm.p95_ms or 0.0, calm.p99_ms or 0.0
        print(f"{streams:>7}{bare:>9.0f}{rate:>11.0f}{rate / bare:>7.2f}{full.mean_batch:>12.1f}{cost:>14.0f}"
              f"{p50:>14.1f}{p95:>7.1f}{p99:>8.1f}{calm.mean_batch:>7.1f}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
