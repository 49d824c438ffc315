"""The configuration of a head that exists in training only."""

from __future__ import annotations

from dataclasses import dataclass, replace

from isodet.strict import ConfigError, require
from models.config.model import AssignConfig, ModelConfig
from models.config.network import is_custom


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
            raise ConfigError("auxiliary: a network that trains as 8 bits (qat) has no pyramid of its own to read; "
                              "leave auxiliary out")  # fmt: skip
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
    keys = {key: factor * getattr(assign, key) for key in assign.part.grown}
    keys |= {key: getattr(assign, key) / factor for key in assign.part.shrunk}
    whole = {key: round(value) for key, value in keys.items() if isinstance(getattr(assign, key), int)}
    return replace(assign, **keys | whole)
