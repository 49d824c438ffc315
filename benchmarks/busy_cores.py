"""Milliseconds of a frame beside 0, 1 and 2 programs that keep a core busy: with all threads, and with one.

    python -m benchmarks.busy_cores [MODEL.onnx] [--seconds 6] [--busy 0 1 2] [--engine onnxruntime]

Each has a block of --seconds to itself, of which the first half is not counted. Without MODEL: ResNet-18 at full
width, 320 px, random weights.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from runtime import BackendOptions, Detector


def milliseconds(detector: Detector, seconds: float) -> float:
    """The median of a frame's time in the second half of `seconds`."""
    frame = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), dtype=np.uint8)
    times, started = [], time.perf_counter()
    while (now := time.perf_counter()) - started < seconds:
        detector(frame)
        if now - started > seconds / 2:
            times.append(time.perf_counter() - now)
    return 1000 * statistics.median(times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help=".onnx")
    parser.add_argument("--seconds", type=float, default=6.0, help="for each cell of the table")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2], help="other programs")
    parser.add_argument("--engine", choices=("onnxruntime", "openvino"), default="onnxruntime")
    parser.add_argument("--out", type=Path, default=Path("runs/runtime-bench"), help="folder of the exported network")
    arguments = parser.parse_args()
    path = arguments.model
    if path is None:
        from benchmarks.runtime_networks import float_graph

        arguments.out.mkdir(parents=True, exist_ok=True)
        path = float_graph(arguments.out, 320)
    cores = len(os.sched_getaffinity(0))
    rows = {f"{cores} threads": cores, "1 thread": 1}
    print(f"| busy programs | {' | '.join(rows)} |\n|---|{'---|' * len(rows)}")
    for busy in arguments.busy:
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            cells = [
                milliseconds(Detector(path, "cpu", threads=threads, options=BackendOptions(engine=arguments.engine)),
                             arguments.seconds)
                for threads in rows.values()
            ]  # fmt: skip
        finally:
            for other in others:
                other.kill()
                other.wait()
        print(f"| {busy} | {' | '.join(f'{cell:.1f}' for cell in cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
