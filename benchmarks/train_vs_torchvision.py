"""Training speed against torchvision's FCOS: same backbone, neck width, head depth, levels, pictures and boxes.

    python benchmarks/train_vs_torchvision.py [--seconds 8] [--rounds 3] [--threads 2]

A step is forward, loss, backward and optimiser on a batch in memory; what each trains on is a batch of the
shapes recipe at 320 px. The contestants take turns, round after round, so that a slow moment of the machine hits
all of them; the table shows the median round and the ratio to torchvision as it is shipped (float32, NCHW).
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
from torch import Tensor
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from models.backbones import build_backbone
from models.config import BackboneConfig, model_config
from models.criterion import criterion
from models.detector import Detector
from runtime import read_coco
from runtime.image import FixedSize
from trainer.config import AugmentConfig, OptimConfig
from trainer.data import Batch, TrainSet, collate
from trainer.optim import build_optimizer
from trainer.recipes.shapes import make_shapes

SIZE, WIDTH, CHANNELS, DEPTH = 320, 0.5, 64, 2
Step = Callable[[], None]


def isodet_step(detector: str, batch: Batch, classes: int, amp: bool) -> Step:
    config = model_config({
        "classes": [str(i) for i in range(classes)], "detector": detector, "input_size_hw": [SIZE, SIZE],
        "backbone": {"name": "resnet18", "width": WIDTH}, "neck": {"channels": CHANNELS},
        "head": {"depth": DEPTH, "norm": "gn"},
    })  # fmt: skip
    model = Detector(config).to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(model, OptimConfig(kind="sgd", lr=1e-3))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            raw = model(batch.images)
        criterion(config, raw, model.priors(), batch.boxes_xyxy, batch.labels).total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def torchvision_step(batch: Batch, classes: int, amp: bool) -> Step:
    body = build_backbone(BackboneConfig(name="resnet18", width=WIDTH))
    layers = {"layer2": "0", "layer3": "1", "layer4": "2"}
    extra = LastLevelP6P7(CHANNELS, CHANNELS)
    backbone = BackboneWithFPN(body, layers, list(body.channels[1:]), CHANNELS, extra_blocks=extra)
    anchors = AnchorGenerator(((8,), (16,), (32,), (64,), (128,)), ((1.0,),) * 5)
    model = FCOS(
        backbone, classes, min_size=SIZE, max_size=SIZE, anchor_generator=anchors,
        head=FCOSHead(CHANNELS, 1, classes, num_convs=DEPTH),
    ).train()  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images = [image.permute(2, 0, 1).flip(0).float().div(255) for image in batch.images]
    targets: list[dict[str, Tensor]] = [
        {"boxes": boxes[labels >= 0], "labels": labels[labels >= 0]}
        for boxes, labels in zip(batch.boxes_xyxy, batch.labels, strict=True)
    ]

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
    contestants = {
        "torchvision FCOS, float32, as shipped": torchvision_step(batch, classes, amp=False),
        "torchvision FCOS, bfloat16 autocast": torchvision_step(batch, classes, amp=True),
        "isodet FCOS, float32": isodet_step("fcos", batch, classes, amp=False),
        "isodet FCOS, bfloat16, as shipped": isodet_step("fcos", batch, classes, amp=True),
        "isodet ATSS, bfloat16, as shipped": isodet_step("atss", batch, classes, amp=True),
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for done in range(arguments.rounds):
        for name, step in contestants.items():
            rates[name].append(rate(step, arguments.seconds, arguments.batch))
        print(f"round {done + 1} of {arguments.rounds}", file=sys.stderr)
    base = statistics.median(rates["torchvision FCOS, float32, as shipped"])
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, CPU, {arguments.threads} threads, batch "
          f"{arguments.batch}, {SIZE} px, ResNet-18 x{WIDTH}, FPN {CHANNELS}, {DEPTH} head convolutions")  # fmt: skip
    print(f"\n{'training':<40}{'images/s':>10}{'ratio':>8}   rounds")
    for name, values in rates.items():
        median = statistics.median(values)
        print(f"{name:<40}{median:>10.1f}{median / base:>8.2f}   {', '.join(f'{v:.1f}' for v in values)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
