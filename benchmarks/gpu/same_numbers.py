"""Whether a GPU computes what the CPU does: outputs, losses, gradients, assignment, and a training's first steps."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext

import torch

from benchmarks.gpu.networks import TINY, Scene, network_config, random_scene
from benchmarks.gpu.stage import Row, Setting
from benchmarks.untrained import calm_network
from models.assigners import assign
from models.assigners.tal import Predictions
from models.config.choices import ASSIGNERS
from models.config.model import ModelConfig
from models.detector import Detector
from models.loss import detection_loss

DETECTORS = ("atss", "fcos", "retinanet")
LIMITS = {"outputs": 1e-4, "losses": 1e-4, "gradients": 1e-3}
"""Of float32, as shares of what is expected: sums of some thousand products, rounded at 6e-8 in another order. Of
bfloat16 the limit is half as much again as what the CPU's own bfloat16 is off by, of float16, whose steps are an eighth
of bfloat16's, as much as that."""
SHARES = {"bf16": 1.5, "fp16": 1.0}
LOSSES_AT_LEAST = 2e-3
"""A loss is a sum in which errors cancel: that the CPU's did so luckily is no reason for a GPU's to do."""
TYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SCALE = 1024.0
"""Of the loss under float16, whose gradients would be too small for it."""
Numbers = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Outputs, losses and gradients, each as one vector on the CPU."""


def rows(setting: Setting) -> Iterator[Row]:
    setting.require_device()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    size = setting.amount(256, 128)
    for backbone in ({"name": "resnet18"}, {"name": "repvgg_a0"}):
        for detector in DETECTORS:
            config = network_config(TINY, detector, input_size_hw=[size, size], backbone=backbone)
            yield from against_cpu(setting, config, f"{detector} {backbone['name']}")
            if setting.small and backbone["name"] != "resnet18":
                break
    for kind in ASSIGNERS:
        yield assignment(setting, kind)
    for detector in DETECTORS if not setting.small else ("atss",):
        yield from curves(setting, detector)


def against_cpu(setting: Setting, config: ModelConfig, name: str) -> Iterator[Row]:
    """The largest share of its limit that outputs, losses or gradients are off by, in each precision."""
    model = calm_network(config).train()
    scene = random_scene(setting.amount(4, 2), config.input_size_hw, len(config.classes))
    reference = numbers(model, scene, "cpu", None)
    rounded = distances(numbers(model, scene, "cpu", torch.bfloat16), reference)
    for precision, dtype in TYPES.items():
        if setting.device == "cpu" and precision == "fp16":
            continue  # no training in float16 on a CPU
        off = distances(numbers(model, scene, setting.device, dtype), reference)
        limits = LIMITS
        if dtype is not None:
            limits = {what: SHARES[precision] * rounded[what] for what in off}
            limits["losses"] = max(limits["losses"], LOSSES_AT_LEAST)
        worst = max(off[what] / limits[what] for what in off)
        note = ", ".join(f"{what} {value:.1e} of {limits[what]:.1e}" for what, value in off.items())
        yield Row(f"{name}, {precision}: off by, of what is allowed", worst, most=1, note=note)


def distances(measured: Numbers, expected: Numbers) -> dict[str, float]:
    return {what: distance(a, b) for what, a, b in zip(LIMITS, measured, expected, strict=True)}


def numbers(model: Detector, scene: Scene, device: str, dtype: torch.dtype | None) -> Numbers:
    """Of a copy of `model` in training on `device`, under autocast to `dtype`."""
    network = copy.deepcopy(model).to(device)
    images, boxes, labels = (t.to(device) for t in (scene.images, scene.boxes_xyxy, scene.labels))
    with torch.autocast(device, dtype) if dtype is not None else nullcontext():
        raw = network(images)
    losses = detection_loss(model.config, raw, network.priors(), boxes, labels)
    scale = SCALE if dtype == torch.float16 else 1.0
    (losses.total * scale).backward()
    # Without its mean, as a class's bias: what is left is what the picture says.
    outputs = torch.cat([(part - part.mean()).detach().flatten().cpu() for part in raw if part is not None])
    gradients = torch.cat([p.grad.flatten().cpu() / scale for p in network.parameters() if p.grad is not None])
    return outputs, torch.stack([loss.detach().cpu() for loss in losses]), gradients


def distance(value: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is expected; NaN where either is not finite."""
    return float((value.double() - expected.double()).norm() / expected.double().norm())


def assignment(setting: Setting, kind: str) -> Row:
    """Priors of a batch that the device gives to another object than the CPU does."""
    preset = "tood" if ASSIGNERS[kind].needs_predictions else "atss"
    changes = {"assign": {"kind": kind}}
    config = network_config(TINY, preset, input_size_hw=[512, 640], **changes)
    grid = calm_network(config).priors()
    scene = random_scene(setting.amount(16, 2), config.input_size_hw, len(config.classes), boxes=40)
    labels = scene.labels.clone()
    labels[0] = -1  # a picture without objects
    labels[1, 20:] = -1
    B, N, C = len(labels), len(grid.boxes_xyxy), len(config.classes)
    logits = torch.randn(B, N, C, generator=torch.Generator().manual_seed(0))

    def matched(device: str) -> torch.Tensor:
        there, priors = labels.to(device), grid.to(torch.device(device))
        predictions = None
        if ASSIGNERS[kind].needs_predictions:  # a network that scores at random, and puts a box where each prior is
            boxes = priors.boxes_xyxy.expand(B, N, 4)
            predictions = Predictions(logits.to(device), boxes, there)
        valid, ignored = there >= 0, there < -1
        return assign(config.assign, priors, scene.boxes_xyxy.to(device), valid, ignored, None, predictions).cpu()

    ours, expected = matched(setting.device), matched("cpu")
    assert (expected >= 0).any(), "a scene in which nothing is assigned shows nothing"
    return Row(f"assignment {kind}: priors assigned otherwise", float((ours != expected).sum()), most=0,
               note=f"of {expected.numel()}, {int((expected >= 0).sum())} positive")  # fmt: skip


def curves(setting: Setting, detector: str) -> Iterator[Row]:
    """Fifty steps from one seed on a few batches: the loss beside the CPU's."""
    steps, size = setting.amount(50, 6), setting.amount(192, 128)
    from benchmarks.gpu.training_steps import Training, batch_of  # the trainer's packages may not be here

    config = network_config(TINY, detector, input_size_hw=[size, size], backbone={"name": "resnet18", "width": 0.5})
    batches = [batch_of(random_scene(setting.amount(8, 2), config.input_size_hw, 10, seed=i)) for i in range(4)]

    def curve(device: str, amp: str) -> list[float]:
        training = Training(calm_network(config), device, amp, optim={"kind": "adamw", "lr": 5e-4})
        training.run(iter([batches[i % 4] for i in range(steps)]), steps)
        return training.curve.totals

    reference = curve("cpu", "off")
    note = "loss at steps 1, half, last"
    shown = " ".join(f"{reference[i]:.4f}" for i in (0, steps // 2, -1))
    yield Row(f"{detector}: {steps} steps on the CPU, fp32", shown, note=note)
    # Rounding grows from step to step, faster than the learning rate is small: the last steps are compared by mean.
    for amp, limit in (("off", 0.02), ("bf16", 0.05), ("fp16", 0.05)):
        if setting.device == "cpu" and amp == "fp16":
            continue
        losses = curve(setting.device, amp)
        last = max(1, steps // 5)
        off = abs(sum(losses[-last:]) / sum(reference[-last:]) - 1)
        precision = "fp32" if amp == "off" else amp
        yield Row(f"{detector}: {steps} steps, {precision}: mean of the last {last} losses, off by", 100 * off, "%",
                  most=100 * limit, note=" ".join(f"{losses[i]:.4f}" for i in (0, steps // 2, -1)))  # fmt: skip
