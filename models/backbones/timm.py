"""Any network that the package timm offers with `features_only`: an optional extra, loaded when it is named."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from isodet.strict import ConfigError
from models.backbones.stages import Backbone

STRIDES = (4, 8, 16, 32)


class TimmBackbone(Backbone):
    """The features of timm's network `name` whose reductions are 4, 8, 16 and 32.

    pretrained: start from timm's own weights, which it downloads. state: weights to start from instead, with the names
    in timm's own files.

    BatchNorms are not folded here, because only timm knows which of them directly follow a convolution. The exporter's
    simplifier folds them. Raises `ConfigError` where timm is not installed or does not know the name, the weights do
    not fit, or the network has other strides or takes pictures of one size only.
    """

    def __init__(self, name: str, pretrained: bool = False, state: Mapping[str, Tensor] | None = None):
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ConfigError(
                f"model.backbone.name: timm:{name} needs the package timm, which is not installed here "
                f"({error}); pip install 'isodet[timm]', or choose a backbone that isodet has itself"
            ) from None
        try:
            # This way timm itself maps the names to those of its flattened feature networks, and drops the classifier.
            overlay = None if state is None else {"state_dict": dict(state)}
            self.network: nn.Module = timm.create_model(
                name, pretrained=pretrained or state is not None, pretrained_cfg_overlay=overlay, features_only=True
            )
        except Exception as error:  # timm raises many kinds: unknown names, no features, no network
            weights = " and its weights" if pretrained else " and the given weights" if state is not None else ""
            raise ConfigError(
                f"model.backbone.name: timm could not make {name!r} with features_only{weights}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if state is not None:
            present = {_flat(key) for key in state}
            needed = [key for key in self.network.state_dict() if "num_batches_tracked" not in key]
            if missing := [key for key in needed if _flat(key) not in present]:  # timm would leave them random
                raise ConfigError(
                    f"model.backbone.weights: the file does not fit timm:{name}: {len(missing)} tensors "
                    f"missing; first: {missing[0]}"
                )
        info = self.network.feature_info
        reductions, channels = list(info.reduction()), list(info.channels())
        if any(stride not in reductions for stride in STRIDES):
            raise ConfigError(
                f"model.backbone.name: timm:{name} has features at strides {reductions}; needed are 4, 8, 16 and 32"
            )
        # Where several features share a stride, the last is the deepest.
        self.indices = [len(reductions) - 1 - reductions[::-1].index(stride) for stride in STRIDES]
        self.channels = tuple(channels[i] for i in self.indices)
        self._probe(name)

    def _probe(self, name: str) -> None:
        """Raise `ConfigError` unless a picture that is not square comes out as features of the stated shapes."""
        H, W = 64, 96
        self.eval()
        try:
            with torch.inference_mode():
                shapes = [tuple(f.shape) for f in self(next(self.parameters()).new_zeros(1, 3, H, W))]
        except Exception as error:  # each network has an error of its own for sizes that it was not made for
            raise ConfigError(
                f"model.backbone.name: timm:{name} does not take pictures of {H}x{W} pixels: {error}; needed is a "
                "network for any multiple of 32, as convolutional ones are"
            ) from error
        self.train()
        needed = [(1, c, H // s, W // s) for c, s in zip(self.channels, STRIDES, strict=True)]
        if shapes != needed:
            raise ConfigError(f"model.backbone.name: timm:{name} gives features {shapes}; needed are {needed}")

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.network(x)
        return [features[i] for i in self.indices]

    def stem_and_stages(self) -> list[list[nn.Module]]:
        return [[self.network]]  # timm's networks have no common notion of stages; the configuration refuses freezing


def _flat(key: str) -> str:
    """A parameter's name without nesting: feature networks have `stages_0` where the full network has `stages.0`."""
    return key.replace(".", "_")
