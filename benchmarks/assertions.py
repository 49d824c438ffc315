"""What the assertions of shapes cost: a training step and a `Detector` call, with them and without (python -O).

    python benchmarks/assertions.py [--rounds 7] [--threads 1]

Two processes of the same work take turns, one as usual and one with -O, round after round, so that a slow moment of
the machine hits both. A process gives its least time, because what disturbs it only adds; the numbers are the medians
over the rounds, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

REPEATS = {"training step": 30, "Detector call": 100}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measured()))
        return 0
    times: dict[str, dict[str, list[float]]] = {name: {"with": [], "without": []} for name in REPEATS}
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    for number in range(arguments.rounds):
        order = [("with", []), ("without", ["-O"])]
        for form, flags in order if number % 2 == 0 else reversed(order):
            command = [sys.executable, *flags, __file__, "--measure"]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
            for name, seconds in json.loads(done.stdout.splitlines()[-1]).items():
                times[name][form].append(seconds)
    print(f"{processor()}, {arguments.threads} threads, {arguments.rounds} rounds")
    print(f"\n{'':<16}{'with (ms)':>12}{'without':>12}{'ratio':>8}   rounds' ratios")
    for name, forms in times.items():
        used, left_out = (statistics.median(forms[form]) for form in ("with", "without"))
        ratios = ", ".join(f"{a / b:.3f}" for a, b in zip(forms["with"], forms["without"], strict=True))
        print(f"{name:<16}{1000 * used:>12.2f}{1000 * left_out:>12.2f}{used / left_out:>8.3f}   {ratios}")
    return 0


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if sys.platform == "linux" else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "an unknown processor")


def measured() -> dict[str, float]:
    """Least seconds of each piece of work in this process, whose network is small so that little hides a cost."""
    import numpy as np
    import torch

    from benchmarks.untrained import calm_network, untrained
    from models.config.model import model_config
    from models.loss import detection_loss
    from runtime import Detector

    size = (128, 128)
    config = model_config({
        "classes": ["a", "b", "c"], "input_size_hw": list(size), "backbone": {"name": "resnet18", "width": 0.125},
        "neck": {"channels": 16}, "head": {"depth": 1},
    })  # fmt: skip
    model = calm_network(config).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    images = torch.randint(0, 256, (4, *size, 3), dtype=torch.uint8)
    boxes = torch.tensor([[8.0, 8.0, 60.0, 70.0], [30.0, 40.0, 100.0, 120.0]]).expand(4, 2, 4)
    labels = torch.tensor([[0, 1]]).expand(4, 2)

    def step() -> None:
        optimizer.zero_grad()
        detection_loss(config, model(images), model.priors(), boxes, labels, regions=False).total.backward()
        optimizer.step()

    with tempfile.TemporaryDirectory() as folder:
        detector = Detector(untrained(Path(folder) / "best.pt", config), device="cpu", threshold=0.0)
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    work = {"training step": step, "Detector call": lambda: detector([frame])}
    return {name: least(work[name], repeats) for name, repeats in REPEATS.items()}


def least(work: Callable[[], object], repeats: int) -> float:
    for _ in range(3):
        work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    sys.exit(main())
