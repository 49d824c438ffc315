"""How fast a training step is, beside torchvision's detectors in the same process, and what share of the card it uses.

A step is the trainer's own (`trainer.steps.train_epoch`: forward, assignment, losses, backward, clipping, optimizer) on
a batch in page-locked memory. The contestants take turns of a few steps, so that a slow moment meets all of them.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import fcos_resnet50_fpn, retinanet_resnet50_fpn

from benchmarks.gpu.machine import ceiling
from benchmarks.gpu.networks import R18, R50, SMALL_R50, TINY, forward_flops, label, network_config, random_scene
from benchmarks.gpu.profile import host_reads, top_kernels
from benchmarks.gpu.stage import Row, Setting
from benchmarks.gpu.timing import synchronize, turns
from benchmarks.gpu.training_steps import PRECISIONS, Precision, Training, batch_of
from models.config import ModelConfig
from models.detector import Detector
from trainer.data import Batch

SHIPPED, BF16 = PRECISIONS[1], PRECISIONS[2]
"""torchvision as it is shipped trains in float32, of which PyTorch lets a GPU's convolutions be TensorFloat-32."""
AS_SHIPPED, EQUAL = 2.0, 1.25
"""What ATSS is to be of torchvision's FCOS."""
BACKWARD = 3.0
"""A training step's operations over a forward pass's: as many again for each of the two gradients."""


def rows(setting: Setting) -> Iterator[Row]:
    if setting.device == "cuda":
        setting.require_cuda()
    large = network_config(SMALL_R50 if setting.small else R50)
    light = network_config(TINY if setting.small else R18)
    yield from against_torchvision(setting, large)
    yield from profiled(setting, light, setting.amount(64, 2))
    for config, sizes, size in ((large, (1, 2, 4, 8, 16, 32), 16), (light, (8, 32, 128, 256), 128)):
        yield from batches(setting, config, sizes if not setting.small else sizes[:1])
        yield from precisions(setting, config, setting.amount(size, 2))
    yield from forms(setting, light, setting.amount(128, 2))


class OutOfRoom(RuntimeError):
    """The batch does not fit into the card's memory."""


def built(setting: Setting, config: ModelConfig, precision: Precision, compiles: bool = False,
          channels_last: bool = True) -> Training:  # fmt: skip
    precision.apply()
    torch.manual_seed(0)
    return Training(Detector(config), setting.device, precision.amp, compiles, channels_last)


def made_batch(setting: Setting, config: ModelConfig, images: int) -> Batch:
    return batch_of(random_scene(images, config.input_size_hw, len(config.classes)), pinned=setting.device == "cuda")


def speed(setting: Setting, training: Training, batch: Batch) -> tuple[float, float]:
    """Images a second, and the peak of the memory in GB. Raises `OutOfRoom`."""
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    steps, seconds = setting.amount(4, 1), 0.0 if setting.small else 1.0
    try:
        times = turns(
            {"step": partial(training.steps, batch, steps)},
            seconds,
            setting.device,
            setting.amount(3, 1),
            setting.amount(3, 1),
        )["step"]
    except torch.OutOfMemoryError as error:
        raise OutOfRoom(str(error)) from None
    peak = torch.cuda.max_memory_allocated() / 1e9 if setting.device == "cuda" else 0.0
    return steps * len(batch.images) / statistics.median(times), peak


def share(setting: Setting, training: Training, images_per_s: float, precision: str) -> str:
    """Of the card's ceiling for that precision, as text."""
    top = ceiling(setting.work, precision)
    if top is None:
        return "the stage machine did not run: no ceiling"
    used = BACKWARD * forward_flops(training.state.model) * images_per_s / 1e12
    return f"{used:.3g} TFLOP/s, {100 * used / top:.1f} % of what a matrix product reaches"


def free(setting: Setting) -> None:
    """Give the memory of what is gone back to the card."""
    gc.collect()
    if setting.device == "cuda":
        torch.cuda.empty_cache()


def batches(setting: Setting, config: ModelConfig, sizes: tuple[int, ...]) -> Iterator[Row]:
    """Images a second over the size of the batch, in bfloat16, up to what fits."""
    training = built(setting, config, BF16)
    for size in sizes:
        what = f"{label(config)}, bf16, batch {size}"
        if setting.left() < 15:
            yield Row(what, None, note="no time left")
            return
        try:
            images_per_s, peak = speed(setting, training, made_batch(setting, config, size))
        except OutOfRoom:
            free(setting)
            yield Row(what, None, note="does not fit into the memory")
            return
        yield Row(
            what, images_per_s, "images/s", note=f"{peak:.1f} GB; {share(setting, training, images_per_s, 'bf16')}"
        )
    del training
    free(setting)


def precisions(setting: Setting, config: ModelConfig, size: int) -> Iterator[Row]:
    batch = made_batch(setting, config, size)
    for precision in PRECISIONS:
        what = f"{label(config)}, {precision.name}, batch {size}"
        if setting.left() < 15:
            yield Row(what, None, note="no time left")
            return
        if precision.name == "bf16" or (precision.amp == "fp16" and setting.device == "cpu"):
            continue  # measured above; not on a CPU
        training = built(setting, config, precision)
        try:
            images_per_s, peak = speed(setting, training, batch)
            note = f"{peak:.1f} GB; {share(setting, training, images_per_s, precision.name)}"
            yield Row(what, images_per_s, "images/s", note=note)
        except OutOfRoom:
            yield Row(what, None, note="does not fit into the memory")
        del training
        free(setting)


def forms(setting: Setting, config: ModelConfig, size: int) -> Iterator[Row]:
    """Channels first in memory, cuDNN's search for the fastest algorithms, torch.compile."""
    batch = made_batch(setting, config, size)
    for what in ("channels first", "cudnn.benchmark", "compile: true"):
        compiles = what == "compile: true"
        if setting.small and compiles:
            continue  # a CPU compiles for minutes
        if setting.left() < (60 if compiles else 10):
            yield Row(f"{label(config)}, bf16, {what}", None, note="no time left")
            continue
        torch.backends.cudnn.benchmark = what == "cudnn.benchmark"
        training = built(setting, config, BF16, compiles, channels_last=what != "channels first")
        images_per_s, peak = speed(setting, training, batch)
        yield Row(f"{label(config)}, bf16, batch {size}, {what}", images_per_s, "images/s", note=f"{peak:.1f} GB")
        del training
        free(setting)


# ---------------------------------------------------------------------------------------------
# torchvision


def against_torchvision(setting: Setting, config: ModelConfig) -> Iterator[Row]:
    """ATSS in bfloat16 over torchvision's FCOS and RetinaNet: as shipped, and in bfloat16 too."""
    size, classes = setting.amount(8, 2), len(config.classes)
    batch = made_batch(setting, config, size)
    ours = built(setting, config, BF16)
    calls: dict[str, Callable[[], None]] = {"ATSS bf16": partial(run, ours, batch, BF16)}
    peers = {"FCOS": fcos_resnet50_fpn, "RetinaNet": retinanet_resnet50_fpn}
    for kind, make in peers.items():
        # All of the backbone learns, as here; 800 and 1333 are its defaults, so its own resizing has nothing to do.
        side, longest = (800, 1344) if not setting.small else config.input_size_hw
        model = make(weights=None, weights_backbone=None, num_classes=classes, trainable_backbone_layers=5,
                     min_size=side, max_size=longest).to(setting.device).train()  # fmt: skip
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        for name, precision in (("as shipped", SHIPPED), ("bf16", BF16)):
            calls[f"{kind} {name}"] = partial(torchvision_step, model, optimizer, batch, setting.device, precision)
    seconds = min(20.0, setting.left() / 4) if not setting.small else 0.1
    times = turns(calls, seconds, setting.device, setting.amount(3, 1), setting.amount(3, 1))
    for name, taken in times.items():
        whose = "isodet" if name.startswith("ATSS") else "torchvision"
        yield Row(f"{label(config)}, batch {size}: {whose} {name}", size / statistics.median(taken), "images/s")
    for kind in peers:
        for name, aim in (("as shipped", AS_SHIPPED), ("bf16", EQUAL)):
            times_as_fast = statistics.median(
                b / a for a, b in zip(times["ATSS bf16"], times[f"{kind} {name}"], strict=True)
            )
            least = aim if kind == "FCOS" and not setting.small else None
            yield Row(f"ATSS bf16 over torchvision {kind} {name}", times_as_fast, "times as fast", least=least)
    del ours, calls
    free(setting)


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
