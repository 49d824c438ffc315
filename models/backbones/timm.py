"""Any network that the package timm offers with `features_only`: an optional extra, loaded when it is named."""

from __future__ import annotations

from torch import Tensor, nn

from models.backbones.stages import Backbone
from models.typed import ConfigError

STRIDES = (4, 8, 16, 32)


class TimmBackbone(Backbone):
    """The features of timm's network `name` whose reductions are 4, 8, 16 and 32.

    Its BatchNorms are not folded here, because only timm knows what stands between them and a convolution; a
    backbone's weights are used once, so the exporter's simplifier folds them without copies. Raises `ConfigError`
    where timm is not installed, does not know the name, or the network has other strides.
    """

    def __init__(self, name: str, pretrained: bool = False):
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ConfigError(
                f"model.backbone.name: timm:{name} needs the package timm, which is not installed here "
                f"({error}); pip install 'isodet[timm]', or choose a backbone that isodet has itself"
            ) from None
        try:
            self.network: nn.Module = timm.create_model(name, pretrained=pretrained, features_only=True)
        except Exception as error:  # timm raises many kinds: unknown names, no features, no network
            raise ConfigError(
                f"model.backbone.name: timm could not make {name!r} with features_only"
                f"{' and its weights' if pretrained else ''}: {type(error).__name__}: {error}"
            ) from error
        info = self.network.feature_info
        reductions, channels = list(info.reduction()), list(info.channels())
        if any(stride not in reductions for stride in STRIDES):
            raise ConfigError(
                f"model.backbone.name: timm:{name} has features at strides {reductions}; needed are 4, 8, 16 and 32"
            )
        # Where several features share a stride, the last is the deepest.
        self.indices = [len(reductions) - 1 - reductions[::-1].index(stride) for stride in STRIDES]
        self.channels = tuple(channels[i] for i in self.indices)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.network(x)
        return [features[i] for i in self.indices]

    def stem_and_stages(self) -> list[list[nn.Module]]:
        return [[self.network]]  # the configuration refuses frozen stages: timm's networks share no notion of them
