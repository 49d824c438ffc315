"""`trainer new`: a recipe with its data, or a complete config for your own annotations, chosen from them.

The written YAML gives the reasons: beside each choice is the number of the data that led to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from isodet.strict import ConfigError
from runtime.datasets import Format, Origin, read_dataset
from runtime.datasets.annotations import CocoDataset
from runtime.datasets.split_list import list_text
from runtime.files.write import replacing
from runtime.images.image import FixedSize
from trainer.check.split import input_sides
from trainer.config.train import smallest_level
from trainer.config_reader import read_config
from trainer.new.advice import (
    Hardware,
    Start,
    choose_anchor_size,
    choose_backbone,
    choose_batch,
    choose_epochs,
    choose_flip,
    choose_levels,
    choose_rate,
    choose_size,
    this_hardware,
    tiles_line,
)
from trainer.new.split import divide
from trainer.new.yaml_text import folder_name, one_line, quoted, relative, split_lines
from trainer.recipes import make_digits, make_shapes
from trainer.recipes.writer import Progress

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
    val: Path | None,
    val_images: Path | None,
    detector: Literal["atss", "retinanet", "fcos", "gfl", "gflv2", "tood"] = "atss",
    size: int | None = None,
    force: bool = False,
    init: Path | None = None,
    format: Format | Literal["auto"] = "auto",
    val_share: float | None = None,
    progress: Progress | None = None,
    comparing: Progress | None = None,
) -> Path:
    """Write a commented config for these annotations to `out`, ready for `trainer fit`; returns `out`.

    `train` and `val` are of any format that `runtime.datasets` reads; folders of images may be None where it has them.
    `size` is the longest side of the input in pixels (rounded up to a multiple of 32); None chooses it from the images
    and boxes. `init` is a checkpoint to start from, whose model is taken. `format` is for folders whose content does
    not show it. `val_share` replaces `val`: that share of `train` validates, and the others are trained on. Pictures
    that belong together stay on one side (`trainer.new.split`), and two lists of pictures are written beside `out`:
    NAME.train.txt and NAME.val.txt. `progress` and `comparing` are those of `divide`. Raises `DatasetError` for
    annotations that cannot be used, `CheckpointError` for `init`, `ConfigError` when there is nothing to train on, a
    number is out of range, the pictures cannot be divided, or a file exists (unless `force`).
    """
    if out.suffix.lower() not in (".yaml", ".yml"):
        raise ConfigError(f"{out}: expected a file name that ends in .yaml")
    lists = {} if val_share is None else {split: out.with_suffix(f".{split}.txt") for split in ("train", "val")}
    for path in (out, *lists.values()):
        if path.exists() and not force:
            raise ConfigError(f"{path}: already exists; choose another name, or delete it first")
    if size is not None and not 64 <= size <= 4096:
        raise ConfigError(f"size: expected the longest input side in pixels, 64 to 4096, got {size}")
    if (val is None) != (val_share is not None):
        raise ConfigError.of("val_share", "give validation data, or a share of the training data, and not both")
    if val_share is not None and not 0 < val_share < 1:
        advice = "for validation data of its own leave it out, and give val"
        raise ConfigError.of("val_share", f"expected a share between 0 and 1, such as 0.2, got {val_share:g}; {advice}")
    val, val_images = (train, train_images) if val is None else (val, val_images)
    splits: dict[str, tuple[Path, Path | None]] = {"train": (train, train_images), "val": (val, val_images)}
    parts: dict[str, frozenset[Path]] = {}
    texts: dict[Path, str] = {}
    if val_share is not None:
        # A share is cut from the one split that there is.
        undivided = read_dataset(train, train_images, None, format, "train")
        for split, paths in zip(splits, divide(undivided, val_share, progress, comparing), strict=True):
            parts[split], texts[lists[split]] = frozenset(paths), list_text(undivided, paths)

    def read(split: str, classes: Sequence[str] | None, origin: Origin = "auto") -> CocoDataset:
        annotations, images = splits[split]
        dataset = read_dataset(annotations, images, classes, format, "train" if parts else split, voc_origin=origin)
        if not parts:
            return dataset
        return replace(dataset, records=tuple(record for record in dataset.records if record.path in parts[split]))

    train_set = read("train", None)
    used = {int(label) for record in train_set.records for label in record.labels[~record.crowd]}
    if not used:
        raise ConfigError(
            f"{train}: none of its {len(train_set)} images has an object that can be trained on"
            + (f": {why}" if (why := train_set.problems.why()) else "")
        )
    classes = [name for label, name in enumerate(train_set.class_names) if label in used]
    val_set = read("val", classes)
    if all(record.crowd.all() for record in val_set.records):
        raise ConfigError(
            f"{val}: none of its {len(val_set)} images has an object that can be validated on"
            + (f": {why}" if (why := val_set.problems.why()) else "")
        )
    # One origin for both sets: a small set may not show from what the tool that wrote both counts.
    origins: dict[str, Origin] = dict.fromkeys(splits, "auto")
    if 0 in (train_set.voc_origin, val_set.voc_origin):
        origins |= {name: 0 for name, d in (("train", train_set), ("val", val_set)) if d.voc_origin is not None}
        val_set = read("val", classes, origins["val"])
    train_kept = read("train", classes, origins["train"])
    more: dict[str, list[tuple[str, str]]] = {name: [] if format == "auto" else [("format", format)] for name in splits}
    for name in splits:
        if origins[name] == 0:
            more[name].append(("voc_origin", "0  # as a coordinate below 1 or a fraction proves"))
        if lists:
            comment = f"{len(parts[name])} pictures; no picture is in both lists, and no near-duplicate of one"
            more[name].append(("pictures", f"{quoted(relative(lists[name], out))}  # {comment}"))
    data = [line for name in splits for line in split_lines(name, *splits[name], out, more[name])]
    left_out = sorted(set(train_set.class_names) - set(classes))
    text = _text(out, data, train_kept, val_set, left_out, detector, size, this_hardware(), init)
    with ExitStack() as files:
        for path, content in texts.items():
            files.enter_context(replacing(path)).write_text(content, encoding="utf-8")
        partial = files.enter_context(replacing(out))
        partial.write_text(text, encoding="utf-8")
        read_config(partial)  # what is left under the final name is a config that loads
    return out


# ---------------------------------------------------------------------------------------------
# the YAML


def _text(
    out: Path, data: Sequence[str], train: CocoDataset, val: CocoDataset,
    left_out: Sequence[str], detector: str, longest: int | None, hardware: Hardware, init: Path | None,
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
    backbone, weights = choose_backbone(hardware)
    levels = choose_levels(sides, size_hw, hardware)
    cells = int(batch.value) * smallest_level(size_hw, json.loads(levels.value)[1])
    flip = choose_flip(train.class_names)
    start: Start = "checkpoint" if init is not None else "scratch" if weights.value == "null" else "imagenet"
    base, rate_why = choose_rate(backbone, start)
    lr = float(f"{base * (int(batch.value) / 16) ** 0.5:.2g}")
    detections = 100 if crowded <= 80 else min(1000, -(-crowded * 5 // 4 // 50) * 50)
    candidates = max(detections, 300 if crowded <= 20 and len(train.class_names) <= 20 else 1000)
    network = [
        f"  # {weights.why}",
        f"  backbone: {{name: {backbone}, weights: {weights.value}}}" + ("" if gpu else "  # a small one, for a CPU"),
        f"  neck: {{channels: {256 if gpu else 64}, levels: {levels.value}, norm: bn}}  # {levels.why}",
        f"  head: {{depth: {4 if gpu else 2}, norm: {'sepbn' if cells >= 16 else 'gn'}}}"
        f"  # a batch has {cells} cells on the last level, {'enough' if cells >= 16 else 'too few'} for BatchNorms",
    ]
    anchors = choose_anchor_size(wh, tuple(json.loads(levels.value))) if detector == "atss" else None
    if anchors is not None:
        network.append(f"  anchors: {{size: {anchors.value}}}  # {anchors.why}")
    if init is not None:
        network = [
            "  # detector, backbone, neck and head are the checkpoint's; what is set here replaces its own",
            "  resize: {rule: letterbox}  # as an exported graph does",
        ]
    lines = [
        f"# Written by `trainer new` for {hardware.name}, from {len(train)} training and {len(val)} validation images.",
        f"# {len(sides)} training objects; the median one is {np.median(sides):.0f} px at this input size.",
        "# Next: trainer check-data, then trainer fit. `trainer show` prints every key there is, with its default.",
        f"name: {quoted(folder_name(out))}",
        *([] if init is None else [f"init: {quoted(relative(init, out))}  # its weights, but for other classes"]),
        "",
        "data:  # paths are relative to this file",
        *data,
        *filter(None, [tiles_line(train, size_hw)]),
        f"  workers: auto  # {'up to 8 loader processes' if gpu else 'none on a CPU: they would take its cores'}",
        "",
        "model:",
        *([f"  detector: {detector}"] if init is None else []),
        *(f"  # left out, without an object in train: {one_line(name)}" for name in left_out),
        "  classes:",
        *(f"    - {quoted(name)}" for name in train.class_names),
        f"  input_size_hw: [{size_hw[0]}, {size_hw[1]}]  # {size_why}",
        *network,
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
        f"  lr: {lr:g}  # {base:g} for a batch of 16, by its square root; {rate_why}",
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
