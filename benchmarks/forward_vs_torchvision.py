"""Inference speed against torchvision's detectors of the same backbone, neck width, head depth, levels and norm.

    python benchmarks/forward_vs_torchvision.py [--size 320] [--seconds 4] [--rounds 5] [--threads 1]

Eval mode, float32, one image. Two measurements: the raw network, from a normalized picture to logits, codes and
quality; and end to end, from a uint8 picture in memory to detections, with 500 scores above the threshold on both
sides. isodet is measured in the form it deploys (folded) and, for the raw network, in its training form too. ATSS is
compared with torchvision's FCOS, which is its network. Contestants take turns, round after round, so that a slow
moment of the machine hits all of them; a ratio is the median of the rounds' ratios of time, isodet over torchvision:
below 1, isodet is faster.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.retinanet import RetinaNetHead, _default_anchorgen
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from models.config.model import model_config
from models.deploy.graph import Deploy
from models.detector import Detector

CLASSES = 80
THRESHOLD, CANDIDATES = 0.05, 500
Run = Callable[[], object]


def isodet(preset: str, backbone: str, size: int) -> tuple[Detector, Deploy]:
    config = model_config({
        "classes": [str(i) for i in range(CLASSES)], "detector": preset, "input_size_hw": [size, size],
        "backbone": {"name": backbone}, "head": {"norm": "none" if preset == "retinanet" else "gn"},
    })  # fmt: skip
    model = Detector(config).eval()
    return model, Deploy(model).eval()


def torchvision_model(preset: str, backbone: str, size: int) -> FCOS | RetinaNet:
    """As torchvision's own builders make it: P3..P7 of 256 channels, four convolutions, frozen BatchNorm."""
    body = resnet_fpn_backbone(
        backbone_name=backbone, weights=None, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    if preset == "retinanet":
        anchors = _default_anchorgen()
        head = RetinaNetHead(256, anchors.num_anchors_per_location()[0], CLASSES)
        return RetinaNet(
            body, CLASSES, min_size=size, max_size=size, anchor_generator=anchors, head=head, score_thresh=THRESHOLD
        ).eval()
    return FCOS(body, CLASSES, min_size=size, max_size=size, score_thresh=THRESHOLD).eval()


def let_through(bias: Tensor, logits: Tensor, quality: bool) -> None:
    """Shift a class bias so that `CANDIDATES` scores are above the threshold, as those of a trained detector are.

    With random weights nothing would be, and torchvision, whose postprocessing grows with what it finds, would have
    none to do. A quality branch of random weights says one half.
    """
    needed = torch.tensor(THRESHOLD**2 / 0.5 if quality else THRESHOLD).logit()
    bias += needed - logits.flatten().topk(CANDIDATES).values[-1]


def contestants(preset: str, backbone: str, size: int, layout: torch.memory_format) -> dict[str, dict[str, Run]]:
    torch.manual_seed(0)
    ours, deploy = isodet(preset, backbone, size)
    theirs = torchvision_model(preset, backbone, size)
    for module in (ours, deploy, theirs):
        module.to(memory_format=layout)
    picture = torch.randint(0, 256, (1, size, size, 3), dtype=torch.uint8)
    planes = ours.pixels(picture).contiguous(memory_format=layout)
    with torch.no_grad():
        quality = preset != "retinanet"
        assert deploy.detector.head.cls.bias is not None
        let_through(deploy.detector.head.cls.bias, ours.network(planes).logits, quality)
        logits = theirs.head(list(theirs.backbone(planes).values()))["cls_logits"]
        let_through(theirs.head.classification_head.cls_logits.bias, logits, quality)
    network = deploy.detector.network

    def raw_torchvision() -> object:
        return theirs.head(list(theirs.backbone(planes).values()))

    def whole_torchvision() -> object:
        return theirs([picture[0].permute(2, 0, 1).flip(0).float().div(255)])

    return {
        "raw network": {
            "torchvision": raw_torchvision,
            "isodet, folded": lambda: network(planes),
            "isodet, training form": lambda: ours.network(planes),
        },
        "end to end": {"torchvision": whole_torchvision, "isodet, folded": lambda: deploy(picture)},
    }


def milliseconds(run: Run, seconds: float) -> float:
    """Median time of a call, over at least `seconds` and three calls."""
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - started < seconds:
        begun = time.perf_counter()
        run()
        times.append((time.perf_counter() - begun) * 1e3)
    return statistics.median(times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--presets", nargs="+", default=["fcos", "atss", "retinanet"])
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each contestant and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--channels-last", action="store_true", help="NHWC weights and activations on both sides")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    layout = torch.channels_last if arguments.channels_last else torch.contiguous_format
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, CPU, {arguments.threads} threads, one "
          f"image, {arguments.size} px, {arguments.backbone}, FPN 256, four head convolutions, {CLASSES} classes, "
          f"float32, {'NHWC' if arguments.channels_last else 'NCHW'}")  # fmt: skip
    print(f"\n{'':<52}{'ms':>8}{'ratio':>8}   ratios of the rounds")
    for preset in arguments.presets:
        for what, runs in contestants(preset, arguments.backbone, arguments.size, layout).items():
            times: dict[str, list[float]] = {name: [] for name in runs}
            with torch.inference_mode():
                for run in runs.values():
                    run()
                for done in range(arguments.rounds):
                    for name, run in runs.items():
                        times[name].append(milliseconds(run, arguments.seconds))
                    print(f"{preset}, {what}: round {done + 1} of {arguments.rounds}", file=sys.stderr)
            for name, values in times.items():
                ratios = [mine / base for mine, base in zip(values, times["torchvision"], strict=True)]
                print(f"{f'{preset}, {what}: {name}':<52}{statistics.median(values):>8.1f}"
                      f"{statistics.median(ratios):>8.2f}   {', '.join(f'{r:.2f}' for r in ratios)}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
