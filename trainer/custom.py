"""Custom parts in a training: found in the configuration's folders and tried; and custom augmentations applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isodet.strict import ConfigError
from models.config.network import is_custom
from models.custom.find import AUGMENTATION, custom_part, look_in, require_environment, require_module_of
from models.custom_trial import try_custom_parts as try_model_parts
from runtime.images.image import Image
from trainer.config.custom import CustomAugmentConfig, custom_names
from trainer.config.train import TrainConfig

Boxes = NDArray[np.float32]
Labels = NDArray[np.int64]


def try_custom_parts(config: TrainConfig) -> TrainConfig:
    """`config` after every custom part was loaded and tried, with their arguments complete. Raises `ConfigError`.

    Modules are searched where Python searches, then in `config.code`, then in the current folder.
    """
    folders = [*(str(Path(folder).resolve()) for folder in config.code), str(Path.cwd())]
    look_in(folders)
    for key, name in custom_names(config.model, config.augment.own):
        require_module_of(folders, name, f"{key}: {name}")
    steps = []
    for i, step in enumerate(config.augment.own):
        try:
            steps.append(_tried(step))
        except ConfigError as error:
            error.args = (str(error).replace("augment.own", f"augment.own[{i}]", 1),)
            raise
    augment = replace(config.augment, own=tuple(steps))
    return replace(config, model=try_model_parts(config.model), augment=augment, code=tuple(folders[:-1]))


_NAMED_BY = {"backbone": "name", "neck": "kind", "assign": "kind", "box": "loss", "loss": "cls"}
"""The key that names the part, by section of the model."""


def require_installed(model: Mapping[str, Any], over: Mapping[str, Any], checkpoint: str) -> None:
    """Raise `ConfigError` where the `model` section of `checkpoint` names a custom part that is not installed.

    A part that the user's model section `over` names too may lie in the folder of the user's config.
    """

    def name_of(config: Mapping[str, Any], section: str) -> str:
        part = config.get(section)
        return str(part.get(_NAMED_BY[section])) if isinstance(part, Mapping) else ""

    names = [name_of(model, section) for section in _NAMED_BY if name_of(model, section) != name_of(over, section)]
    try:
        require_environment(filter(is_custom, names))
    except ConfigError as error:
        raise ConfigError(
            f"init: {checkpoint}: {error}. A checkpoint does not say where code is found: put its folder on PYTHONPATH "
            "or, where the code is yours, name the part in this config's model section too"
        ) from error


def custom_augmentations(
    steps: Sequence[CustomAugmentConfig], image: Image, boxes_xyxy: Boxes, labels: Labels, rng: np.random.Generator
) -> tuple[Image, Boxes, Labels]:
    """Apply the custom `steps`, each with its probability, to a picture uint8 [h,w,3] BGR, its boxes [G,4], labels [G].

    Raises `ConfigError` for a step that returns anything but a picture and as many boxes as labels.
    """
    for step in steps:
        if rng.random() < step.probability:
            image, boxes_xyxy, labels = _applied(step, image, boxes_xyxy, labels, rng)
    return image, boxes_xyxy, labels


def _applied(
    step: CustomAugmentConfig, image: Image, boxes_xyxy: Boxes, labels: Labels, rng: np.random.Generator
) -> tuple[Image, Boxes, Labels]:
    part = custom_part(AUGMENTATION, step.name, step.arguments)
    # Copies, because others may use the same picture and boxes: a step may write into its arguments.
    result = part(image.copy(), boxes_xyxy.copy(), labels.copy(), rng)
    if not _fits(result):
        parts = result if isinstance(result, (tuple, list)) else (result,)
        got = ", ".join(f"{x.dtype} {list(x.shape)}" if isinstance(x, np.ndarray) else type(x).__name__ for x in parts)
        raise ConfigError(
            f"{part.where}: expected (image uint8 [h, w, 3], boxes_xyxy [G, 4] of finite floats, labels [G] of "
            f"integers), a tuple of arrays; got {type(result).__name__}: {got}"
        )
    image, boxes_xyxy, labels = result
    return image, boxes_xyxy.astype(np.float32, copy=False), labels.astype(np.int64, copy=False)


def _fits(result: Any) -> bool:
    if not (isinstance(result, tuple) and len(result) == 3 and all(isinstance(x, np.ndarray) for x in result)):
        return False
    image, boxes, labels = result
    picture = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size > 0
    objects = labels.ndim == 1 and labels.dtype.kind == "i" and boxes.shape == (len(labels), 4)
    return bool(picture and objects and boxes.dtype.kind == "f" and np.isfinite(boxes).all())


def _tried(step: CustomAugmentConfig) -> CustomAugmentConfig:
    """`step` with its arguments complete, after a trial on a picture with three boxes and on one without any."""
    part = custom_part(AUGMENTATION, step.name, step.arguments)
    step = replace(step, arguments=part.arguments())
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (96, 160, 3), dtype=np.uint8)
    boxes = np.array([[10, 10, 50, 40], [60, 20, 150, 90], [0, 0, 160, 96]], np.float32)
    for count in (3, 0):
        labels = np.arange(count, dtype=np.int64)
        _, _, after = _applied(step, picture, boxes[:count], labels, rng)
        if not np.isin(after, labels).all():
            raise ConfigError(f"{part.where}: it gave labels {after.tolist()} that were not in the picture")
    return step
