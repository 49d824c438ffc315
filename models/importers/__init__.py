"""Weights of other projects: checkpoints of torchvision and mmdetection, with their conventions as options of isodet.

A file is imported completely or refused with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from isodet.strict import ConfigError, merge
from models.config.model import ModelConfig, model_config
from models.detector import Detector
from models.importers import coco, mmdet, torchvision
from models.importers.weights import Converted, ImportRefused, read_weights
from models.tensor_files import first_mismatches

__all__ = ["ImportRefused", "Imported", "Source", "import_checkpoint"]

Source = Literal["torchvision", "mmdet"]
COCO_INPUT_HW = (800, 1344)
"""One input size for the papers' images (short side 800, long side at most 1333), for landscape pictures."""


@dataclass(frozen=True)
class Imported:
    """An imported detector: its weights under isodet's names, and the configuration to run them.

    notes: settings that are not in the file, and were taken from the published form of the architecture.
    """

    state: dict[str, Tensor]
    config: ModelConfig
    source: Source
    architecture: str
    notes: tuple[str, ...]


def import_checkpoint(
    path: str | Path,
    source: Source | None = None,
    classes: Sequence[str] | None = None,
    input_size_hw: tuple[int, int] = COCO_INPUT_HW,
    style: mmdet.Style | None = None,
    norm_eps: float | None = None,
    resize: tuple[int, int] | None = None,
) -> Imported:
    """Weights and configuration of a checkpoint of torchvision or mmdetection. Raises `ImportRefused`.

    source: the project; None finds it by the names of the tensors. classes: names by label, needed where the file was
    not trained on COCO and does not have them; with one name less than outputs, torchvision's background output is
    dropped.
    style, norm_eps: the backbone's, where they differ from the published ones (`mmdet.convert`, `torchvision.convert`).
    resize: short and long side in px of the resize rule in training, where they are not 800 and 1333.
    """
    state, meta = read_weights(path)
    if source is None:
        source = "torchvision" if torchvision.recognizes(state) else "mmdet" if mmdet.recognizes(state) else None
    if source is None:
        names = ", ".join(list(state)[:3])
        raise ImportRefused.at(
            path,
            f"neither torchvision's nor mmdetection's (it holds {names}); imported are torchvision's "
            f"{', '.join(torchvision.NAMES)} and mmdetection's {', '.join(mmdet.NAMES)}",
        )
    try:
        if source == "torchvision":
            if style == "caffe":
                raise ImportRefused("style: caffe is mmdetection's; torchvision's backbones stride in the 3x3")
            converted = torchvision.convert(path, state, norm_eps)
        else:
            converted = mmdet.convert(state, meta, norm_eps, style)
        class_names = _names_in(meta) if classes is None else tuple(classes)
        sizes: dict[str, Any] = {"input_size_hw": list(input_size_hw)}
        if resize is not None:
            sizes["resize"] = {"short": resize[0], "long": resize[1]}
        return _checked(converted, source, class_names, merge(converted.model, sizes))
    except (ImportRefused, ConfigError) as error:
        raise ImportRefused.at(path, str(error)) from error


def _checked(converted: Converted, source: Source, classes: tuple[str, ...] | None, model: dict[str, Any]) -> Imported:
    """The import with its classes chosen, after a check that every tensor has its place."""
    state = dict(converted.state)
    anchors = 9 if converted.model["detector"] == "retinanet" else 1
    box_outputs = state["head.box.weight"].shape[0]
    if box_outputs != anchors * 4:
        raise ImportRefused(
            f"{converted.architecture} has {anchors} anchors in a cell and {anchors * 4} box outputs, "
            f"this file has {box_outputs} of them"
        )
    rows, names = _classes(state["head.cls.weight"].shape[0], anchors, source, classes)
    for name in ("head.cls.weight", "head.cls.bias"):
        if name in state:
            value = state[name]
            state[name] = value.reshape(anchors, -1, *value.shape[1:])[:, rows].flatten(0, 1).contiguous()
    config = model_config({**model, "classes": list(names)}, "import")
    channels = config.head.channels or config.neck.channels
    if config.head.norm == "gn" and (channels < 256 or channels % 32):
        raise ImportRefused(
            f"its towers have {channels} channels, which are normalized in 32 groups there and in "
            "groups of 8 channels here; multiples of 32 from 256 on are equal in both"
        )
    return Imported(fitted(state, config), config, source, converted.architecture, converted.notes)


def fitted(state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """`state` as the complete state dict of a detector of `config`; raises `ImportRefused` where it does not fit.

    Tensors that need not be in a file are added: BatchNorms' step counts, and level scales that are not learned.
    """
    with torch.device("meta"):  # shapes only
        expected = Detector(config, load_weights=False).state_dict()
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    counts = {k: torch.zeros((), dtype=torch.int64) for k in expected if k.endswith("num_batches_tracked")}
    scales = {} if config.head.level_scales else {"head.scales": torch.ones(expected["head.scales"].shape)}
    full = {**scales, **state, **counts}
    if mismatches := first_mismatches(full, expected):
        raise ImportRefused(f"its tensors are not those of this architecture: {mismatches}")
    return {key: full[key].to(expected[key].dtype) for key in expected}


def _classes(
    outputs: int, anchors: int, source: Source, classes: tuple[str, ...] | None
) -> tuple[list[int], tuple[str, ...]]:
    """Which outputs of an anchor become labels 0, 1, ..., and their names."""
    if outputs % anchors:
        raise ImportRefused(f"{outputs} class outputs do not divide into {anchors} anchors")
    count = outputs // anchors
    if source == "torchvision" and count == 91 and (classes is None or len(classes) == 80):
        return list(coco.IDS), classes or coco.NAMES
    if source == "mmdet" and count == 80 and classes is None:
        return list(range(80)), coco.NAMES
    if classes is None:
        raise ImportRefused(f"it has {count} class outputs, which are not COCO's; give the classes' names by label")
    if len(classes) == count:
        return list(range(count)), classes
    if source == "torchvision" and len(classes) == count - 1:  # output 0 is the background, which is never trained
        return list(range(1, count)), classes
    raise ImportRefused(f"it has {count} class outputs, but {len(classes)} class names are given")


def _names_in(meta: dict[str, object]) -> tuple[str, ...] | None:
    """Class names in the `meta` of an mmdetection file, if it has them."""
    dataset_meta = meta.get("dataset_meta")
    for mapping in (meta, dataset_meta if isinstance(dataset_meta, dict) else {}):
        for key in ("CLASSES", "classes"):
            names = mapping.get(key)
            if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
                return tuple(names)
    return None
