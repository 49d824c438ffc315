"""Training speed against torchvision's FCOS and RetinaNet: same backbone, neck width, head depth, pictures and boxes.

    python -m benchmarks.train_vs_torchvision [--seconds 8] [--rounds 3] [--threads 2]

A step is forward, loss, backward and optimizer on a batch in memory; what each trains on is a batch of the shapes
recipe at 320 px. isodet's networks are compared in their own form (per-level BatchNorm in the head, its default) and
with torchvision's GroupNorm. The contestants take turns, round after round, so that a slow moment of the machine hits
all of them; the table shows the median round, and the medians of the rounds' ratios to torchvision's detector of the
same kind: as it is shipped (float32, NCHW), and in the same precision.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision

from benchmarks.torchvision_peers import CHANNELS, DEPTH, SIZE, WIDTH, torchvision_inputs, torchvision_model
from models.config.model import model_config
from models.detector import Detector
from models.loss import detection_loss
from runtime import read_coco
from runtime.images.image import FixedSize
from trainer.config.train import AugmentConfig, OptimConfig
from trainer.data.train_set import Batch, TrainSet, collate
from trainer.devices.allocator import freed_memory_kept
from trainer.optim import build_optimizer
from trainer.recipes.shapes import make_shapes

Step = Callable[[], None]
RETINANET_DEPTH = 4  # torchvision's has no argument for it
RETINANET_ANCHORS = {"size": 2.0, "scales_per_octave": 3, "ratios": [0.5, 1.0, 2.0]}


def isodet_step(detector: str, norm: str, batch: Batch, classes: int, amp: bool) -> Step:
    retinanet = detector == "retinanet"
    config = model_config({
        "classes": [str(i) for i in range(classes)], "detector": detector, "input_size_hw": [SIZE, SIZE],
        "backbone": {"name": "resnet18", "width": WIDTH}, "neck": {"channels": CHANNELS},
        "head": {"depth": RETINANET_DEPTH if retinanet else DEPTH, "norm": norm},
        **({"anchors": RETINANET_ANCHORS} if retinanet else {}),
    })  # fmt: skip
    model = Detector(config).to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(model, OptimConfig(kind="sgd", lr=1e-3))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            raw = model(batch.images)
        detection_loss(config, raw, model.priors(), batch.boxes_xyxy, batch.labels).total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def torchvision_step(detector: str, batch: Batch, classes: int, amp: bool) -> Step:
    model = torchvision_model(detector, classes).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images, targets = torchvision_inputs(batch)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            losses = model(images, targets)
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def rate(step: Step, seconds: float, images: int) -> float:
    """Images per second over at least `seconds`, after two untimed steps."""
    step()
    step()
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        step()
        steps += 1
    return steps * images / (time.perf_counter() - started)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="time for each contestant and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--detectors", nargs="+", default=["fcos", "atss", "retinanet"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        make_shapes(Path(folder), train_images=arguments.batch, val_images=1, size_hw=(SIZE, SIZE))
        data = read_coco(Path(folder) / "train.json", Path(folder) / "train")
        samples = TrainSet(data, FixedSize((SIZE, SIZE)), AugmentConfig())
        batch = collate([samples[i] for i in range(arguments.batch)])
    classes = len(data.class_names)
    contestants: dict[tuple[str, str, str], Step] = {}
    for amp, precision in ((False, "float32"), (True, "bfloat16")):
        for detector in arguments.detectors:
            peer = "fcos" if detector == "atss" else detector  # ATSS is FCOS's network
            contestants.setdefault(("torchvision", peer, precision), torchvision_step(peer, batch, classes, amp))
            for norm in ("sepbn", "gn"):
                contestants["isodet " + norm, detector, precision] = isodet_step(detector, norm, batch, classes, amp)
    rates: dict[tuple[str, str, str], list[float]] = {name: [] for name in contestants}
    for done in range(arguments.rounds):
        for name, step in contestants.items():
            with freed_memory_kept(name[0].startswith("isodet")):  # as `trainer fit` does
                rates[name].append(rate(step, arguments.seconds, arguments.batch))
        print(f"round {done + 1} of {arguments.rounds}", file=sys.stderr)
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, CPU, {arguments.threads} threads, batch "
          f"{arguments.batch}, {SIZE} px, ResNet-18 x{WIDTH}, FPN {CHANNELS}, {DEPTH} head convolutions (RetinaNet "
          f"{RETINANET_DEPTH})")  # fmt: skip
    print(f"\n{'training':<36}{'images/s':>10}{'as shipped':>12}{'same precision':>16}   rounds")
    for (whose, detector, precision), values in rates.items():
        peer = "fcos" if detector == "atss" else detector
        ratios = [
            statistics.median(mine / base for mine, base in zip(values, rates["torchvision", peer, other], strict=True))
            for other in ("float32", precision)
        ]
        print(f"{f'{whose} {detector} {precision}':<36}{statistics.median(values):>10.1f}{ratios[0]:>12.2f}"
              f"{ratios[1]:>16.2f}   {', '.join(f'{v:.1f}' for v in values)}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
