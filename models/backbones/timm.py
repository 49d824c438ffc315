"""Any network that the package timm offers with `features_only`: an optional extra, loaded when it is named."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.backbones.stages import Backbone
from models.typed import ConfigError

STRIDES = (4, 8, 16, 32)


class TimmBackbone(Backbone):
    """The features of timm's network `name` whose reductions are 4, 8, 16 and 32.

    Its BatchNorms are not folded here, because only timm knows what stands between them and a convolution; a
    backbone's weights are used once, so the exporter's simplifier folds them without copies. Raises `ConfigError`
    where timm is not installed, does not know the name, or the network has other strides, takes one picture size
    only, or gives channels last; all of it before anything is trained.
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
        self._try(name)

    def _try(self, name: str) -> None:
        """Run it once on a size that no network is made for: attention often has windows or tables of one size."""
        training, height, width = self.network.training, 64, 96
        try:
            with torch.no_grad():
                features = self.eval()(torch.zeros(1, 3, height, width))
        except Exception as error:  # timm's networks assert, index and multiply
            raise ConfigError(
                f"model.backbone.name: timm:{name} cannot take pictures of {height}x{width} ({type(error).__name__}: "
                f"{error}), so it is bound to a size of its own; use a convolutional network, as timm:convnext_tiny"
            ) from error
        self.train(training)
        given = [tuple(x.shape) for x in features]
        wanted = [(1, c, height // s, width // s) for c, s in zip(self.channels, STRIDES, strict=True)]
        if given != wanted:
            raise ConfigError(
                f"model.backbone.name: timm:{name} gives features of shape {given[0]}, needed is {wanted[0]} (channels "
                "first); use a convolutional network, as timm:convnext_tiny"
            )

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.network(x)
        return [features[i] for i in self.indices]

    def stem_and_stages(self) -> list[list[nn.Module]]:
        return [[self.network]]  # the configuration refuses frozen stages: timm's networks share no notion of them
