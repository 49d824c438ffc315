"""The head's norm: what none, gn, bn and sepbn cost and give, from training to the exported graph.

    python benchmarks/head_norms.py [--norms none gn bn sepbn] [--seeds 0 1] [--epochs 8] [--out runs/head_norms]

Trains the recipe once for each norm and seed, everything else equal, exports with --simplify and scores the exported
file. Finished trainings stay in --out, so a run that was stopped goes on where it stood, and one with more seeds or
norms adds to it. Then, with nothing else to do: training speed, and latency in a bare ONNX Runtime session, one frame
at a time. In both the norms take turns, so that a slow moment of the machine hits all of them, and ratios are medians
over the turns.

The recipe's head is small. A second table is of the head that is put on a GPU: ResNet-50, 256 channels, five levels,
four convolutions, 640 px, 80 classes, with random weights and random BatchNorm statistics, because nodes, bytes and
milliseconds do not depend on them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

import export
from isodet.strict import to_mapping
from models.checkpoint import save_checkpoint
from models.config.model import ModelConfig, model_config
from models.detector import Detector
from models.loss import detection_loss
from runtime import Card, read_card
from runtime.card.card import Nms
from runtime.images.image import letterbox, read_image
from trainer.config.train import TrainConfig
from trainer.config_reader import read_config
from trainer.data.datasets import train_data, val_data
from trainer.data.train_set import TrainSet, collate, resize_rule
from trainer.devices.precision import pick_amp
from trainer.loop import fit
from trainer.new.config import RECIPES
from trainer.optim import build_optimizer

NORMS = ("none", "gn", "bn", "sepbn")
Turns = Mapping[str, Sequence[float]]
"""What each norm took at its turns."""


def recipe_config(recipe: str, norm: str, seed: int, epochs: int, out: Path) -> TrainConfig:
    """The recipe with this norm; its data is made when it is not there."""
    data = out / recipe
    if not data.exists():
        RECIPES[recipe](data)
    overrides = [
        f"name={recipe}-{epochs}-{norm}-{seed}", f"model.head.norm={norm}", f"seed={seed}",
        f"schedule.epochs={epochs}", f"val_interval={epochs}",
    ]  # fmt: skip
    return read_config(data / f"{recipe}.yaml", overrides)


def trained(config: TrainConfig, out: Path) -> Path:
    """The exported detector of one training; an ONNX file that is there already was trained before."""
    path = out / f"{config.name}.onnx"
    if not path.exists():
        export.to_onnx(fit(config, out / "runs", quiet=True).best, path)
    return path


def untrained(norm: str, path: Path) -> Path:
    """The large detector with random weights that find something everywhere, exported."""
    if path.exists():
        return path
    config = model_config({
        "classes": [str(i) for i in range(80)], "input_size_hw": [640, 640], "backbone": {"name": "resnet50"},
        "neck": {"channels": 256, "levels": [3, 7], "norm": "bn"}, "head": {"depth": 4, "norm": norm, "prior": 0.2},
    })  # fmt: skip
    torch.manual_seed(0)
    model = Detector(config)
    with torch.no_grad():
        for part in (model.head.cls_tower, model.head.box_tower):
            for conv in part.modules():
                if isinstance(conv, nn.Conv2d):
                    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        for prediction in (model.head.cls, model.head.box, model.head.quality):
            assert isinstance(prediction, nn.Conv2d)
            prediction.weight.normal_(std=0.02)
        for name, weight in model.backbone.named_parameters():
            if name.endswith("bn3.weight"):
                weight.fill_(0.2)  # calm residuals: fifty random layers would blow up the rounding of the folding
        for norm_layer in model.modules():
            if isinstance(norm_layer, nn.BatchNorm2d):
                norm_layer.momentum = 1.0  # the statistics of one batch of noise
        model(torch.randint(0, 256, (2, 640, 640, 3), dtype=torch.uint8))
    checkpoint = path.with_suffix(".pt")
    save_checkpoint(checkpoint, model.state_dict(), _card(config).to_json())
    export.to_onnx(checkpoint, path, gate=export.Gate(verify=False))
    checkpoint.unlink()
    return path


def _card(config: ModelConfig) -> Card:
    post = config.postprocess
    nms: Nms = {"kind": "portable", "iou": post.nms_iou, "candidates": post.candidates, "detections": post.detections}
    return Card("checkpoint", config.classes, config.input_size_hw, post.score_threshold, nms, model=to_mapping(config))


def training_seconds(configs: Mapping[str, TrainConfig], rounds: int, steps: int = 4) -> Turns:
    """Seconds for one image of a training step, for each norm at each of its turns."""
    taken: dict[str, list[float]] = {norm: [] for norm in configs}
    runs = {norm: _training_step(config) for norm, config in configs.items()}
    for step in runs.values():
        step()
    for _ in range(rounds):
        for norm, step in runs.items():
            begun = time.perf_counter()
            for _ in range(steps):
                step()
            taken[norm].append((time.perf_counter() - begun) / steps / configs[norm].images_per_batch)
    return taken


def _training_step(config: TrainConfig) -> Callable[[], None]:
    device = torch.device("cpu")
    amp = pick_amp(config.amp, device)
    samples = TrainSet(train_data(config), resize_rule(config.model), config.augment, config.seed)
    batch = collate([samples[i] for i in range(config.images_per_batch)])
    model = Detector(config.model).to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(model, config.optim)

    def step() -> None:
        with torch.autocast(device.type, amp, enabled=amp is not None):
            raw = model(batch.images)
        detection_loss(config.model, raw, model.priors(), batch.boxes_xyxy, batch.labels).total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def latencies(files: Mapping[str, Sequence[Path]], frames: Sequence[np.ndarray], threads: int) -> Turns:
    """Milliseconds of each frame [1, H, W, 3] for each norm; with several files, those of all of them."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    sessions = [
        (norm, onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]))
        for turn in zip(*files.values(), strict=True)
        for norm, path in zip(files, turn, strict=True)
    ]
    for _, session in sessions * 2:
        session.run(None, {"images": frames[0]})
    taken: dict[str, list[float]] = {norm: [] for norm in files}
    for frame in frames:
        for norm, session in sessions:
            begun = time.perf_counter()
            session.run(None, {"images": frame})
            taken[norm].append((time.perf_counter() - begun) * 1e3)
    return taken


def ratio(turns: Turns, norm: str) -> float:
    """The median over turns of this norm's time over that of the first."""
    base = next(iter(turns.values()))
    return statistics.median(mine / theirs for mine, theirs in zip(turns[norm], base, strict=True))


def size(path: Path) -> str:
    """Nodes and megabytes."""
    return f"{len(onnx.load(path).graph.node):>7}{path.stat().st_size / 2**20:>8.2f}"


def timed(turns: Turns, norm: str) -> str:
    """The median, and its ratio to the first norm's."""
    return f"{statistics.median(turns[norm]):>9.2f}{ratio(turns, norm):>7.3f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="digits")
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=NORMS, help="ratios are to the first")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="of the ONNX Runtime session")
    parser.add_argument("--rounds", type=int, default=12, help="turns of each norm in training speed and at 640 px")
    parser.add_argument("--out", type=Path, default=Path("runs/head_norms"), help="folder; finished trainings are kept")
    arguments = parser.parse_args()
    out: Path = arguments.out
    files: dict[str, list[Path]] = {norm: [] for norm in arguments.norms}
    for seed in arguments.seeds:
        for norm in arguments.norms:
            config = recipe_config(arguments.recipe, norm, seed, arguments.epochs, out)
            files[norm].append(trained(config, out))
            scores = read_card(files[norm][-1]).metrics
            print(f"{norm:<7} seed {seed}  mAP {scores['map']:>6.2f}  AP50 {scores['ap50']:>6.2f}", flush=True)

    configs = {norm: recipe_config(arguments.recipe, norm, 0, arguments.epochs, out) for norm in arguments.norms}
    training = training_seconds(configs, arguments.rounds)
    first = next(iter(configs.values()))
    frames = [letterbox(read_image(r.path), first.model.input_size_hw)[0][None] for r in val_data(first).records]
    timings = [latencies(files, frames, threads) for threads in arguments.threads]
    shown = "".join(f"{f'ms, {t} thr.':>12}{'x':>4}" for t in arguments.threads)
    print(f"\n{'norm':<8}{'mAP':>7}{'(of seeds)':>16}{'AP50':>7}{'(of seeds)':>16}{'nodes':>7}{'MB':>8}{shown}"
          f"{'train img/s':>14}{'x time':>8}")  # fmt: skip
    for norm in arguments.norms:
        cells = f"{norm:<8}"
        for key in ("map", "ap50"):
            values = [float(read_card(path).metrics[key]) for path in files[norm]]
            cells += f"{statistics.mean(values):>7.2f}{f'({min(values):.2f}..{max(values):.2f})':>16}"
        cells += size(files[norm][0]) + "".join(timed(turns, norm) for turns in timings)
        print(f"{cells}{1 / statistics.median(training[norm]):>14.1f}{ratio(training, norm):>8.3f}")
    print(
        f"{arguments.recipe}, {arguments.epochs} epochs, seeds {arguments.seeds}, {len(frames)} pictures; onnxruntime"
        f" {onnxruntime.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads",
        flush=True,
    )

    large = {norm: [untrained(norm, out / f"resnet50-640-{norm}.onnx")] for norm in arguments.norms}
    noise = np.random.default_rng(0).integers(0, 256, (arguments.rounds, 1, 640, 640, 3), dtype=np.uint8)
    timings = [latencies(large, list(noise), threads) for threads in arguments.threads]
    print(f"\n{'ResNet-50, 640 px':<20}{'nodes':>7}{'MB':>8}{shown}")
    for norm in arguments.norms:
        print(f"{norm:<20}{size(large[norm][0])}" + "".join(timed(turns, norm) for turns in timings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
