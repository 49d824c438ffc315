"""A user's own backbone: any module that gives four features, behind the interface of isodet's."""

from __future__ import annotations

from torch import Tensor, nn

from isodet.strict import ConfigError
from models.backbones.stages import Backbone
from models.config.model import BackboneConfig
from models.custom.find import BACKBONE, custom_part


class CustomBackbone(Backbone):
    """The features of the class `config.name`, which takes no positional arguments and has the widths of C2..C5 in
    `.channels`.

    Stages can be frozen if the class has `stem_and_stages()`, as in `Backbone`. Raises `ConfigError`.
    """

    def __init__(self, config: BackboneConfig):
        super().__init__()
        part = custom_part(BACKBONE, config.name, config.arguments)
        self.network: nn.Module = part()
        channels = getattr(self.network, "channels", None)
        widths = tuple(channels) if isinstance(channels, (list, tuple)) else ()
        if len(widths) != 4 or not all(isinstance(c, int) and c > 0 for c in widths):
            raise ConfigError(f"{part.where}: expected .channels, four widths of C2, C3, C4, C5; got {channels!r}")
        self.channels = widths
        if config.frozen_stages and len(self.stem_and_stages()) != 5:
            raise ConfigError(
                f"model.backbone.frozen_stages: {config.name} needs a method stem_and_stages() for it, that returns "
                "the modules of the stem and of the four stages as five lists; or set frozen_stages: 0"
            )

    def forward(self, x: Tensor) -> list[Tensor]:
        features: list[Tensor] = self.network(x)
        return features

    def stem_and_stages(self) -> list[list[nn.Module]]:
        stages = getattr(self.network, "stem_and_stages", None)
        return [[self.network]] if stages is None else [list(stage) for stage in stages()]
