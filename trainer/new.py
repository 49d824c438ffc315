"""`trainer new`: a recipe with its data, or a complete config for your own annotations, chosen from them.

The written YAML is the place to read why: each choice stands beside the number of the data it came from.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.typed import ConfigError
from runtime.datasets import read_dataset
from runtime.files import replacing
from runtime.image import FixedSize
from runtime.records import CocoDataset
from trainer.check import input_sides
from trainer.config import read_config, smallest_level
from trainer.recipes import make_digits, make_shapes
from trainer.recipes.writer import Progress
from trainer.yaml_text import folder_name, quoted, split_lines

RECIPES: dict[str, Callable[..., None]] = {"digits": make_digits, "shapes": make_shapes}


def new_recipe(name: str, out: Path, progress: Progress | None = None) -> Path:
    """Make the data set and config of a recipe in the folder `out`; returns the config's path.

    Raises `ConfigError` for an unknown name, `RecipeError` when `out` already holds files.
    """
    if name not in RECIPES:
        raise ConfigError(f"recipe: expected one of {', '.join(RECIPES)}, got {name!r}")
    RECIPES[name](out, progress=progress)
    return out / f"{name}.yaml"


def new_config(
    out: Path,
    train: Path,
    train_images: Path | None,
    val: Path,
    val_images: Path | None,
    detector: Literal["atss", "retinanet", "fcos"] = "atss",
    size: int | None = None,
    force: bool = False,
) -> Path:
    """Write a commented config for these annotations to `out`, ready for `trainer fit`; returns `out`.

    `train` and `val` are of any format that `runtime.datasets` reads; folders of images may be None where it has them.
    `size` is the longest side of the input in pixels (rounded up to a multiple of 32); None chooses it from
    the images and boxes. Raises `DatasetError` for annotations that cannot be used, `ConfigError` when there
    is nothing to train on, a number is out of range, or `out` exists (unless `force`).
    """
    if out.suffix.lower() not in (".yaml", ".yml"):
        raise ConfigError(f"{out}: expected a file name that ends in .yaml")
    if out.exists() and not force:
        raise ConfigError(f"{out}: already exists; choose another name, or delete it first")
    if size is not None and not 64 <= size <= 4096:
        raise ConfigError(f"size: expected the longest input side in pixels, 64 to 4096, got {size}")
    whole = read_dataset(train, train_images, split="train")
    used = {int(label) for record in whole.records for label in record.labels[~record.crowd]}
    if not used:
        raise ConfigError(f"{train}: none of its {len(whole)} images has an object that can be trained on")
    classes = [name for label, name in enumerate(whole.class_names) if label in used]
    kept = read_dataset(train, train_images, classes, split="train")
    judged = read_dataset(val, val_images, classes, split="val")
    text = _text(
        out,
        [(train, train_images), (val, val_images)],
        kept,
        judged,
        sorted(set(whole.class_names) - set(classes)),
        detector,
        size,
        _hardware(),
    )
    with replacing(out) as partial:
        partial.write_text(text, encoding="utf-8")
        read_config(partial)  # what is left under the final name is a config that loads
    return out


@dataclass(frozen=True)
class Hardware:
    kind: Literal["cpu", "gpu"]
    name: str
    memory_gib: float
    """Of the GPU; 0 for a CPU."""


def _hardware() -> Hardware:
    import torch

    if not torch.cuda.is_available():
        return Hardware("cpu", f"a CPU with {os.cpu_count() or 1} cores", 0.0)
    properties = torch.cuda.get_device_properties(0)
    return Hardware("gpu", properties.name, properties.total_memory / 2**30)


@dataclass(frozen=True)
class _Choice:
    """A value for the YAML, and the sentence that says why."""

    value: str
    why: str


def choose_size(dataset: CocoDataset, longest: int | None, hardware: Hardware) -> tuple[tuple[int, int], str]:
    """The input's height and width, multiples of 32, and why."""
    hw = np.array([(record.height, record.width) for record in dataset.records], np.float64)
    aspect = hw[:, 1] / hw[:, 0]
    typical = float(np.median(aspect))
    mixed = np.quantile(aspect, 0.1) < 0.9 and np.quantile(aspect, 0.9) > 1.1
    shape = (
        "portrait and landscape mixed, so square" if mixed else f"the median picture's width / height is {typical:.2f}"
    )
    if mixed:
        typical = 1.0
    if longest is None:
        # Objects as a share of their picture's longest side; the smaller tenth should get 16 px, two cells of P3.
        shares = (
            np.concatenate([input_sides(record, FixedSize((2048, 2048))).reshape(-1, 2) for record in dataset.records])
            / 2048
        )
        small = float(np.quantile(np.sqrt(shares.prod(1)), 0.1))
        most = 512 if hardware.kind == "cpu" else 1024
        own = float(np.median(hw.max(1)))
        longest = round(float(np.clip(16 / max(small, 1e-4), 320, most)))
        why = f"asks for {16 / max(small, 1e-4):.0f} px to show the smallest tenth of the objects 16 px wide"
        if longest >= most:
            why += f"; kept at {most} for speed on this {hardware.kind.upper()}"
        if longest > own:
            longest, why = round(own), f"no larger than the pictures ({own:.0f} px)"
    else:
        why = "as asked"
    height, width = (longest, longest * typical) if typical < 1 else (longest / typical, longest)
    return (_multiple_of_32(height), _multiple_of_32(width)), f"{why}; {shape}"


def _multiple_of_32(side: float) -> int:
    return max(64, int(np.ceil(round(side, 3) / 32)) * 32)


def choose_levels(sides: NDArray[np.float64], size_hw: tuple[int, int], hardware: Hardware) -> _Choice:
    """First and last pyramid level for objects of these sides (input pixels)."""
    low, high = np.quantile(sides, [0.25, 0.95])
    first = 2 if low < 12 and hardware.kind == "gpu" else 3
    last = 5 if high < 96 else 6 if high < 256 else 7
    while last > 5 and 2**last > min(size_hw) / 2:
        last -= 1
    why = f"a quarter of the objects is below {low:.0f} px at this size, 5 % above {high:.0f} px"
    if low < 12:
        why += "; P2 helps the small ones" if first == 2 else "; P2 would help the small ones, at 4 times the cost"
    return _Choice(f"[{first}, {last}]", why)


def choose_batch(size_hw: tuple[int, int], images: int, hardware: Hardware) -> _Choice:
    """Images in a batch, a power of two."""
    if hardware.kind == "cpu":
        batch, why = (8 if size_hw[0] * size_hw[1] <= 320 * 320 else 4), f"training on {hardware.name}"
    else:
        # ResNet-50 with FPN 256 in mixed precision takes some 0.6 GiB for each image of 640x640.
        each = 0.6 * size_hw[0] * size_hw[1] / 640**2
        batch, why = (
            int(np.clip(0.6 * hardware.memory_gib / each, 1, 32)),
            f"{hardware.memory_gib:.0f} GiB of GPU memory",
        )
    if batch > images / 4:
        batch, why = max(1, images // 4), f"only {images} training images"
    return _Choice(str(2 ** int(np.log2(batch))), why)


def choose_epochs(images: int, batch: int, hardware: Hardware) -> _Choice:
    """Epochs, so that small data sets get enough steps and large ones end."""
    steps, least, most = (3_000, 5, 100) if hardware.kind == "cpu" else (10_000, 12, 300)
    each = max(1, images // batch)
    epochs = int(np.clip(-(-steps // each), least, most))
    return _Choice(str(epochs), f"{images} images are {each} steps an epoch, {epochs * each} in all")


def choose_flip(classes: Sequence[str]) -> _Choice:
    """Mirroring off where a mirrored object would be another class, or none."""
    symbols = [name for name in classes if re.fullmatch(r"\W*(\w|\d+)\W*", name)]
    if len(symbols) >= max(1, len(classes) // 2):
        return _Choice("0", f"classes like {_one_line(symbols[0])} are letters or digits: mirrored, they are others")
    for name in classes:
        words = re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())
        if set(words) & {"left", "right", "text", "letter", "digit", "arrow"}:
            return _Choice("0", f"class {_one_line(name)} is not the same in a mirror")
    return _Choice(
        "0.5", "no class name speaks of left, right, letters or digits; set 0 where a mirror changes the class"
    )


# ---------------------------------------------------------------------------------------------
# the YAML


def _text(
    out: Path, given: Sequence[tuple[Path, Path | None]], train: CocoDataset, val: CocoDataset,
    left_out: Sequence[str], detector: str, longest: int | None, hardware: Hardware,
) -> str:  # fmt: skip
    gpu = hardware.kind == "gpu"
    size_hw, size_why = choose_size(train, longest, hardware)
    wh = np.concatenate([input_sides(record, FixedSize(size_hw)) for record in train.records]).astype(np.float64)
    sides = np.sqrt(wh.prod(1))
    per_image = [int((~record.crowd).sum()) for record in train.records]
    crowded = max(per_image)
    batch = choose_batch(size_hw, len(train), hardware)
    epochs = choose_epochs(len(train), int(batch.value), hardware)
    total = int(epochs.value) * max(1, len(train) // int(batch.value))
    backbone = "resnet50" if gpu else "resnet18"
    weights = choose_weights(backbone)
    levels = choose_levels(sides, size_hw, hardware)
    cells = int(batch.value) * smallest_level(size_hw, json.loads(levels.value)[1])
    flip = choose_flip(train.class_names)
    scratch = weights.value == "null"
    base = 3e-3 if scratch else 1e-3  # pretrained features are not to be thrown over
    lr = float(f"{base * (int(batch.value) / 16) ** 0.5:.1g}")
    detections = 100 if crowded <= 80 else min(1000, -(-crowded * 5 // 4 // 50) * 50)
    candidates = max(detections, 300 if crowded <= 20 and len(train.class_names) <= 20 else 1000)
    lines = [
        f"# Written by `trainer new` for {hardware.name}, from {len(train)} training and {len(val)} validation images.",
        f"# {len(sides)} training objects; the median one is {np.median(sides):.0f} px at this input size.",
        "# Next: trainer check-data, then trainer fit. `trainer show` prints every key there is, with its default.",
        f"name: {quoted(folder_name(out))}",
        "",
        "data:  # paths are relative to this file",
        *split_lines("train", *given[0], out),
        *split_lines("val", *given[1], out),
        f"  workers: auto  # {'up to 8 loader processes' if gpu else 'none on a CPU: they would take its cores'}",
        "",
        "model:",
        f"  detector: {detector}",
        *(f"  # left out, without an object in train: {_one_line(name)}" for name in left_out),
        "  classes:",
        *(f"    - {quoted(name)}" for name in train.class_names),
        f"  input_size_hw: [{size_hw[0]}, {size_hw[1]}]  # {size_why}",
        f"  # {weights.why}",
        f"  backbone: {{name: {backbone}, weights: {weights.value}}}" + ("" if gpu else "  # the small one, for a CPU"),
        f"  neck: {{channels: {256 if gpu else 64}, levels: {levels.value}, norm: bn}}  # {levels.why}",
        f"  head: {{depth: {4 if gpu else 2}, norm: {'sepbn' if cells >= 16 else 'gn'}}}"
        f"  # a batch has {cells} cells on the last level, {'enough' if cells >= 16 else 'too few'} for BatchNorms",
        f"  postprocess: {{candidates: {candidates}, detections: {detections}}}"
        f"  # at most {crowded} objects in a training image",
        "",
        f"batch_size: {batch.value}  # {batch.why}",
        "augment:",
        f"  flip: {flip.value}  # {flip.why}",
        f"  scale_probability: {'1.0' if gpu else '0.5  # a short run: half of the pictures stay as they are'}",
        "  scale: [0.6, 1.6]",
        "optim:",
        "  kind: adamw",
        f"  lr: {lr:g}  # {base:g} for a batch of 16{' from scratch' if scratch else ''}, by its square root",
        "  weight_decay: 0.05",
        "  clip_norm: 10",
        f"  ema: {0.999 if total >= 10_000 else 0.99}  # {total} steps in all",
        "schedule:",
        f"  epochs: {epochs.value}  # {epochs.why}",
        "  kind: cosine",
        f"  warmup_steps: {min(500, max(1, total // 10))}",
        f"val_interval: {max(1, int(epochs.value) // 20)}",
    ]
    return "\n".join(lines) + "\n"


def choose_weights(backbone: str) -> _Choice:
    """ImageNet weights where torchvision can get them from here; a config must run as it is written."""
    from models.backbones import imagenet_at_hand  # imports torch, which nothing else here needs

    if imagenet_at_hand(backbone):
        return _Choice(
            "imagenet", "torchvision fetches these weights once; null trains from scratch and takes far longer"
        )
    return _Choice(
        "null", "from scratch, because torchvision's server did not answer when this was written; with a network "
        "set imagenet, without one a path to the file: either needs far fewer epochs",
    )  # fmt: skip


def _one_line(text: str) -> str:
    """`text` for a comment, where a line break would end the comment."""
    return repr(text) if text.isprintable() else ascii(text)
