"""The configuration of what a training may have besides: a teacher, an auxiliary head, 8 bits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from isodet.strict import ConfigError, require
from models.config.model import AssignConfig, ModelConfig
from models.config.network import is_custom


@dataclass(frozen=True)
class DistillConfig:
    """Learning from a bigger detector, too (docs/training.md).

    teacher: A checkpoint in float, trained or imported, of the same classes in the same order.
    logits: Weight of the loss between both classifications, which needs the same priors; 0: no such loss.
    region: logits: share of an image's priors that are taught, those of which the teacher is surest. Small inputs have
        few priors and need a larger share.
    features: Weight of the loss between both pyramids, which needs the same levels; 0: no such loss.
    temperature: Logits and features are divided by this before they become probabilities; above 1 softens them.
    """

    teacher: str
    logits: float = 1.0
    region: float = 0.01
    features: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require(bool(self.teacher), "teacher", "the path of a checkpoint", self.teacher)
        require(self.logits >= 0, "logits", "0 or a positive weight", self.logits)
        require(self.features >= 0, "features", "0 or a positive weight", self.features)
        require(self.logits + self.features > 0, "logits", "a positive weight here or in features", self.logits)
        require(0 < self.region <= 1, "region", "a share above 0, at most 1", self.region)
        require(0.1 <= self.temperature <= 100, "temperature", "0.1 to 100", self.temperature)

    def require_fitting(self, automatic_batch: bool, quantized: bool) -> None:
        """Raise `ConfigError` for a training that cannot have this teacher."""
        if automatic_batch:
            raise ConfigError("batch_size: auto does not count the memory of the teacher in distill; give a number")
        if quantized and self.features:
            raise ConfigError(
                "distill.features: a network that trains as 8 bits (qat) has no pyramid of its own to compare; use "
                "distill.logits, and features: 0"
            )


def require_comparable(config: DistillConfig, student: ModelConfig, teacher: ModelConfig) -> None:
    """Raise `ConfigError` where `teacher` does not fit `student` for the losses of `config`."""
    if teacher.classes != student.classes:
        raise ConfigError(
            f"distill.teacher: {config.teacher} knows {_classes(teacher)}, this model {_classes(student)}"
            "; the classes must be the same, in the same order"
        )
    if teacher.neck.levels != student.neck.levels:
        raise ConfigError(
            f"distill.teacher: {config.teacher} has the pyramid levels {list(teacher.neck.levels)}, this model "
            f"{list(student.neck.levels)}, so their cells are not the same; set model.neck.levels: "
            f"{list(teacher.neck.levels)}"
        )
    if config.logits and teacher.anchors != student.anchors:
        raise ConfigError(
            f"distill.logits: {config.teacher} has other priors ({teacher.anchors}) than this model "
            f"({student.anchors}), so their predictions are not of the same places; take its model.anchors, or set "
            "distill.logits: 0 and distill.features: 1"
        )


def _classes(model: ModelConfig) -> str:
    return f"{len(model.classes)} classes ({', '.join(model.classes[:4])}{', ...' if len(model.classes) > 4 else ''})"


@dataclass(frozen=True)
class AuxiliaryConfig:
    """A second head on the pyramid, in training only, with a coarser assignment (docs/training.md).

    weight: Weight of its loss beside the head's own; YOLOv7's is 0.25.
    depth: Convolutions in each of its two towers: fewer than the head's, so that the pyramid has to do the work.
    coarse: How many more positives its assignment allows: `assign.topk` (YOLOv7: 20 candidates for 10) or
        `assign.radius` times this, or the IoU thresholds divided by it. 1 is the head's own assignment.
    """

    weight: float = 0.25
    depth: int = 1
    coarse: float = 2.0

    def __post_init__(self) -> None:
        require(0 < self.weight <= 10, "weight", "above 0, at most 10", self.weight)
        require(0 <= self.depth <= 8, "depth", "0 to 8", self.depth)
        require(1 <= self.coarse <= 8, "coarse", "1 to 8", self.coarse)

    def require_fitting(self, model: ModelConfig, automatic_batch: bool, quantized: bool) -> None:
        """Raise `ConfigError` for a training that cannot have this head."""
        if automatic_batch:
            raise ConfigError("batch_size: auto does not count the memory of the auxiliary head; give a number")
        if quantized:
            raise ConfigError(
                "auxiliary: a network that trains as 8 bits (qat) has no pyramid of its own to read; "
                "leave auxiliary out"
            )
        if self.coarse != 1 and not (model.assign.part.grown or model.assign.part.shrunk):
            assigner = f"your own assigner ({model.assign.kind})" if is_custom(model.assign.kind) else model.assign.kind
            raise ConfigError(f"auxiliary.coarse: what is coarse of {assigner} is not known; set coarse: 1")


def auxiliary_model(config: AuxiliaryConfig, model: ModelConfig) -> ModelConfig:
    """`model` with the auxiliary head's depth and assignment."""
    head = replace(model.head, depth=config.depth)
    return replace(model, head=head, assign=coarse(model.assign, config.coarse))


def coarse(assign: AssignConfig, factor: float) -> AssignConfig:
    """`assign` with its constraint on positives relaxed by `factor`."""
    if factor == 1:
        return assign
    values = {key: factor * getattr(assign, key) for key in assign.part.grown}
    values |= {key: getattr(assign, key) / factor for key in assign.part.shrunk}
    counts = {key: round(value) for key, value in values.items() if isinstance(getattr(assign, key), int)}
    return replace(assign, **values | counts)


@dataclass(frozen=True)
class QatConfig:
    """Training with 8-bit weights and activations (docs/training.md).

    images: Training pictures on which the ranges of activations are observed before the first step.
    method: How a range is chosen from what was observed (`models.quant.ranges`).
    percentile: percentile: percentage of magnitudes that are within the range.
    freeze: Part of the epochs during which ranges follow the activations. After it they stay.
    float_layers: Convolutions that stay in float besides the last predictions, such as backbone.conv1.
    """

    images: int = 256
    method: Literal["minmax", "percentile", "mse", "entropy"] = "mse"
    percentile: float = 99.99
    freeze: float = 0.5
    float_layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.images >= 1, "images", "1 or more", self.images)
        require(90 <= self.percentile <= 100, "percentile", "90 to 100", self.percentile)
        require(0 <= self.freeze <= 1, "freeze", "a part of the run, 0 to 1", self.freeze)
