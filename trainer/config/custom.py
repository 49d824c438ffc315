"""The custom parts that a training's configuration names. Reading the names does not need torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from isodet.strict import CustomName, require
from models.config.model import ModelConfig, custom_parts_of


@dataclass(frozen=True)
class CustomAugmentConfig:
    """An augmentation of your own (docs/extending.md).

    name: `package.module:function`.
    arguments: Its arguments.
    probability: Probability for each picture.
    """

    name: CustomName
    arguments: Mapping[str, Any] | None = field(default=None, hash=False)
    probability: float = 1.0

    def __post_init__(self) -> None:
        require(0 < self.probability <= 1, "probability", "above 0, at most 1", self.probability)


def custom_names(model: ModelConfig, augmentations: Sequence[CustomAugmentConfig]) -> list[tuple[str, str]]:
    """(key, name) of every custom part."""
    return custom_parts_of(model) + [(f"augment.own[{i}].name", step.name) for i, step in enumerate(augmentations)]


def joined_folders(first: Any, second: Any) -> Any:
    """Two lists of folders as one. A value that is not a list stays as it is: `build` refuses it."""
    if not (isinstance(first, list) and isinstance(second, list)):
        return second if isinstance(first, list) else first
    return list(dict.fromkeys([*first, *second]))
