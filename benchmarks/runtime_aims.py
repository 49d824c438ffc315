"""What the runtime has to reach on a CPU, as ratios in one run: a line for each aim, reached or missed.

    python -m benchmarks.runtime_aims [--only overhead torchvision batcher soak memory start] [--threads 1]

overhead     Detector end to end against the bare ONNX Runtime session: ResNet-18, 320 and 640 px, camera frames
torchvision  the float32 and the 8-bit CPU file against torchvision eager of the same backbone and widths
batcher      1 to 64 streams into an engine that sleeps: throughput of its full batches, p99 under 80 % load
soak         numbered frames into the batcher: each answered once, with its own answer
memory       resident memory over many frames
start        import, and the first result of a fresh process

Contestants take turns, one call each, and a ratio is the median of the turns' ratios, so that a slow moment of the
machine hits both. Networks have random weights (benchmarks/runtime_networks.py) and are exported on the first run.
Exit status 1: an aim was missed.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tqdm import tqdm


def main() -> int:
    if not __package__:
        print("run it as a module: python -m benchmarks.runtime_aims", file=sys.stderr)
        return 2
    from benchmarks.runtime_parts import PARTS, Setting

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.runtime_aims",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=list(PARTS), metavar="PART")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime and PyTorch (default: 1)")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each row; some take a multiple (default: 5)")
    parser.add_argument("--submits", type=int, default=1_000_000, help="of the soak (default: 1000000)")
    parser.add_argument("--frames", type=int, default=100_000, help="of the memory's (default: 100000)")
    parser.add_argument("--batch-ms", type=float, default=8.0, help="the sleeping engine's, for 16 frames (default: 8)")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--out", type=Path, default=Path("runs/runtime-bench"), help="folder of the exported networks")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    setting = Setting(arguments.out, arguments.threads, arguments.seconds, arguments.submits, arguments.frames,
                      arguments.batch_ms, tuple(arguments.streams))  # fmt: skip
    missed = 0
    print(f"{arguments.threads} threads, {len(os.sched_getaffinity(0))} of {os.cpu_count()} processors, "
          f"load average {os.getloadavg()[0]:.1f}")  # fmt: skip
    print("\n| | measured | aim | | |\n|---|---|---|---|---|", flush=True)
    for part in tqdm(arguments.only, unit="part"):
        for result in PARTS[part](setting):
            tqdm.write(f"{result.line()}", file=sys.stdout)
            missed += not result.reached
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
