"""How fast a training step is, beside torchvision's detectors in the same process, and what share of the card it uses.

A step is the trainer's own (`trainer.step.train_epoch`: forward, assignment, losses, backward, clipping, optimizer) on
a batch in page-locked memory. The contestants take turns of a few steps, so that a slow moment meets all of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from benchmarks.gpu.attempts import attempt, free, until_one_fails
from benchmarks.gpu.machine import ceiling
from benchmarks.gpu.networks import R18, R50, SMALL_R50, TINY, label, network_config, random_scene
from benchmarks.gpu.profile import host_reads, top_kernels
from benchmarks.gpu.stage import Row, Setting
from benchmarks.gpu.timing import ratio, synchronize, turns
from benchmarks.gpu.training_steps import AS_SHIPPED, BF16, FP16, FP32, TF32, Precision, Training, batch_of
from models.config.model import ModelConfig
from models.detector import Detector
from trainer.data.train_set import Batch

OVER_SHIPPED, OVER_EQUAL = 2.0, 1.25
"""What ATSS with ResNet-50 is to be of torchvision's FCOS."""
COMPILED = "compile: true"
"""A form of training that a CPU would compile for minutes."""


def rows(setting: Setting) -> Iterator[Row]:
    setting.require_device()
    large = network_config(SMALL_R50 if setting.small else R50)
    light = network_config(TINY if setting.small else R18)
    side = setting.amount(320, 128)
    wide = network_config(R50, backbone=R18["backbone"], input_size_hw=[side, side])  # as torchvision's detectors are
    yield from against_torchvision(setting, large, setting.amount(8, 2))
    yield from profiled(setting, light, setting.amount(64, 2))
    yield from against_torchvision(setting, wide, setting.amount(64, 2))
    for config, first, size in ((large, 1, 16), (light, 8, 128)):
        yield from batches(setting, config, first)
        yield from precisions(setting, config, setting.amount(size, 2))
    yield from forms(setting, light, setting.amount(128, 2))


def built(setting: Setting, config: ModelConfig, precision: Precision, compiles: bool = False,
          channels_last: bool = True) -> Training:  # fmt: skip
    precision.apply()
    torch.manual_seed(0)
    return Training(Detector(config), setting.device, precision.amp, compiles, channels_last)


def made_batch(setting: Setting, config: ModelConfig, images: int) -> Batch:
    """A batch of at most 16 different pictures."""
    scene = random_scene(min(images, 16), config.input_size_hw, len(config.classes))
    return batch_of(scene.repeated(images), pinned=setting.device == "cuda")


def speed(setting: Setting, training: Training, batch: Batch) -> tuple[float, float]:
    """Images a second, and the peak of the memory in GB."""
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    steps, seconds = setting.amount(max(1, 32 // len(batch.images)), 1), 0.0 if setting.small else 1.0
    calls = {"step": partial(training.steps, batch, steps)}
    times = turns(calls, seconds, setting.device, setting.amount(3, 1), setting.amount(2, 1))["step"]
    peak = torch.cuda.max_memory_allocated() / 1e9 if setting.device == "cuda" else 0.0
    return steps * len(batch.images) / statistics.median(times), peak


def share(setting: Setting, training: Training, images_per_s: float, precision: str) -> str:
    """Of the card's ceiling for that precision, as text."""
    top = ceiling(setting.work, precision)
    if top is None:
        return "the stage machine did not run: no ceiling"
    used = training.flops * images_per_s / 1e12
    return f"{used:.3g} TFLOP/s, {100 * used / top:.1f} % of what a matrix product reaches"


def batches(setting: Setting, config: ModelConfig, first: int) -> Iterator[Row]:
    """Images a second over the size of the batch, in bfloat16: twice as many until they do not fit."""
    training = built(setting, config, BF16)
    sizes = (first << i for i in range(setting.amount(12, 1)))
    yield from until_one_fails(measured(setting, training, BF16, size) for size in sizes)
    del training
    free(setting)


def precisions(setting: Setting, config: ModelConfig, size: int) -> Iterator[Row]:
    """The other precisions at one size of batch; float16, which no training on a CPU can have, on a GPU."""
    for precision in (FP32, TF32, *([FP16] if setting.device == "cuda" else [])):
        yield from measured(setting, built(setting, config, precision), precision, size)
        free(setting)


def measured(setting: Setting, training: Training, precision: Precision, size: int) -> Iterator[Row]:
    """Images a second at a size of batch, or why there are none."""
    config = training.state.detector.config

    def rows(what: str) -> Iterator[Row]:
        images_per_s, peak = speed(setting, training, made_batch(setting, config, size))
        used = share(setting, training, images_per_s, precision.name)
        yield Row(what, images_per_s, "images/s", note=f"{peak:.1f} GB; {used}")

    return attempt(setting, f"{label(config)}, {precision.name}, batch {size}", 15, rows)


def forms(setting: Setting, config: ModelConfig, size: int) -> Iterator[Row]:
    """Channels first in memory, cuDNN's search for the fastest algorithms, torch.compile."""
    batch = made_batch(setting, config, size)

    def measured_as(form: str, what: str) -> Iterator[Row]:
        torch.backends.cudnn.benchmark = form == "cudnn.benchmark"
        training = built(setting, config, BF16, form == COMPILED, channels_last=form != "channels first")
        images_per_s, peak = speed(setting, training, batch)
        yield Row(what, images_per_s, "images/s", note=f"{peak:.1f} GB")

    for form in ("channels first", "cudnn.benchmark", *([] if setting.small else [COMPILED])):
        what = f"{label(config)}, bf16, batch {size}, {form}"
        yield from attempt(setting, what, 60 if form == COMPILED else 10, partial(measured_as, form))
        free(setting)


# ---------------------------------------------------------------------------------------------
# torchvision


def against_torchvision(setting: Setting, config: ModelConfig, size: int) -> Iterator[Row]:
    """ATSS in bfloat16 over torchvision's FCOS and RetinaNet: as shipped, and in bfloat16 too."""
    what = f"{label(config)}, {config.neck.channels} channels, batch {size}"
    yield from attempt(setting, f"{what}: against torchvision", 20, lambda _: compared(setting, config, size, what))
    free(setting)


def compared(setting: Setting, config: ModelConfig, size: int, what: str) -> Iterator[Row]:
    """The five in turns: images a second of each, and the quotients."""
    batch = made_batch(setting, config, size)
    ours = built(setting, config, BF16)
    calls: dict[str, Callable[[], None]] = {"ATSS bf16": partial(run, ours, batch, BF16)}
    for kind in (FCOS, RetinaNet):
        model = torchvision_peer(kind, config).to(setting.device).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        for precision in (AS_SHIPPED, BF16):
            step = partial(torchvision_step, model, optimizer, batch, setting.device, precision)
            calls[f"{kind.__name__} {precision.name}"] = step
    seconds = min(15.0, setting.left() / 5) if not setting.small else 0.1
    times = turns(calls, seconds, setting.device, setting.amount(3, 1), setting.amount(3, 1))
    for name, taken in times.items():
        whose = "isodet" if name.startswith("ATSS") else "torchvision"
        yield Row(f"{what}: {whose} {name}", size / statistics.median(taken), "images/s")
    scored = config.backbone.name == "resnet50" and not setting.small
    for name in list(times)[1:]:
        aim = OVER_SHIPPED if name.endswith(AS_SHIPPED.name) else OVER_EQUAL
        yield Row(f"{what}: ATSS bf16 over torchvision {name}", ratio(times[name], times["ATSS bf16"]), "times as fast",
                  least=aim if scored and name.startswith("FCOS") else None)  # fmt: skip


def torchvision_peer(kind: type[FCOS] | type[RetinaNet], config: ModelConfig) -> nn.Module:
    """The network of torchvision's `fcos_resnet50_fpn` or `retinanet_resnet50_fpn`, on the backbone of `config`.

    Nothing of it is frozen, as nothing is here; its own resizing has nothing to do at this size.
    """
    backbone = resnet_fpn_backbone(
        backbone_name=config.backbone.name, weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5,
        returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256),
    )  # fmt: skip
    side, longest = sorted(config.input_size_hw)
    return kind(backbone, num_classes=len(config.classes), min_size=side, max_size=longest)


def run(training: Training, batch: Batch, precision: Precision) -> None:
    precision.apply()
    training.steps(batch, 1)


def torchvision_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, device: str, precision: Precision
) -> None:
    """A step as torchvision's own training script makes it, without its logging."""
    precision.apply()
    images = [image.to(device, non_blocking=True).permute(2, 0, 1).flip(0).float().div(255) for image in batch.images]
    targets: list[dict[str, Any]] = [
        {"boxes": boxes.to(device, non_blocking=True), "labels": labels.to(device, non_blocking=True)}
        for boxes, labels in zip(batch.boxes_xyxy, batch.labels, strict=True)
    ]
    with torch.autocast(device, torch.bfloat16, enabled=precision.amp == "bf16"):
        losses = model(images, targets)
    sum(losses.values()).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


# ---------------------------------------------------------------------------------------------
# where the time goes


def profiled(setting: Setting, config: ModelConfig, size: int) -> Iterator[Row]:
    """The kernels that a step spends its time in, and how often it waits for the device."""
    training = built(setting, config, BF16)
    batch = made_batch(setting, config, size)
    training.steps(batch, 3)
    synchronize(setting.device)
    places = host_reads(setting.device, partial(training.steps, batch, 1))
    where = "; ".join(f"{count} {place}" for place, count in places.items())
    yield Row(f"{label(config)}: waits for the device in a step", float(sum(places.values())), most=1, note=where)
    for rank, (name, percent) in enumerate(top_kernels(setting.device, partial(training.steps, batch, 3)), 1):
        yield Row(f"{label(config)}: kernel {rank} by time", percent, "%", note=name)
    del training
    free(setting)
