"""A user's own parts in a training: found in the configuration's folders, tried; and the augmentations among them."""

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
    """`config` with every own part found and tried, and their arguments complete. Raises `ConfigError`.

    Modules are looked for where Python does, then in `config.code`, then in the current folder.
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
    """Raise `ConfigError` where a checkpoint's `model` has a part of its maker's own that is not installed.

    What the configuration `over` names itself is the user's, and may lie in its folder.
    """
    names: list[str] = []
    for section, key in _NAMED_BY.items():
        part, own = ((m[section].get(key) if isinstance(m.get(section), Mapping) else None) for m in (model, over))
        names += [str(part)] if part != own and is_custom(str(part)) else []
    try:
        require_environment(names)
    except ConfigError as error:
        raise ConfigError(
            f"init: {checkpoint}: {error}. A checkpoint does not say where code is found: put its folder on PYTHONPATH "
            "or, where the code is yours, name the part in this config's model section too"
        ) from error


def custom_augmentations(
    steps: Sequence[CustomAugmentConfig], image: Image, boxes_xyxy: Boxes, labels: Labels, rng: np.random.Generator
) -> tuple[Image, Boxes, Labels]:
    """A picture uint8 [h,w,3] BGR, its boxes [G,4] and labels [G] after the own `steps`, each with its probability.

    Raises `ConfigError` where one gives something else than a picture and as many boxes as labels.
    """
    for step in steps:
        if rng.random() < step.probability:
            image, boxes_xyxy, labels = _applied(step, image, boxes_xyxy, labels, rng)
    return image, boxes_xyxy, labels


def _applied(
    step: CustomAugmentConfig, image: Image, boxes_xyxy: Boxes, labels: Labels, rng: np.random.Generator
) -> tuple[Image, Boxes, Labels]:
    part = custom_part(AUGMENTATION, step.name, step.arguments)
    # Copies, because a picture or its boxes may be somebody else's too: what a step draws into must not stay.
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
    """`step` with its arguments complete, after it had a picture with three boxes, and one without any."""
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
