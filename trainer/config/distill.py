"""The configuration of learning from a bigger detector."""

from __future__ import annotations

from dataclasses import dataclass

from isodet.strict import ConfigError, require
from models.config.model import ModelConfig


@dataclass(frozen=True)
class DistillConfig:
    """Learning from a bigger detector, too (docs/training.md).

    teacher: A checkpoint in float, trained or imported, of the same classes in the same order.
    logits: Weight of the loss between both classifications, which needs the same priors; 0: none.
    region: logits: share of an image's priors that are taught, those of which the teacher is surest. Small inputs have
        few priors and need a larger share.
    features: Weight of the loss between both pyramids, which needs the same levels; 0: none.
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
    """Raise `ConfigError` where `student` cannot learn from `teacher` what `config` asks for."""
    if teacher.classes != student.classes:
        raise ConfigError(f"distill.teacher: {config.teacher} knows {_classes(teacher)}, this model {_classes(student)}"
                          "; the classes must be the same, in the same order")  # fmt: skip
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
