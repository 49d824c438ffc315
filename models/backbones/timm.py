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

    pretrained: with timm's own weights, which it downloads. state: weights to start from instead, under the names of
    timm's whole network, as its own files have them.

    Its BatchNorms are not folded here, because only timm knows what stands between them and a convolution; a
    backbone's weights are used once, so the exporter's simplifier folds them without copies. Raises `ConfigError`
    where timm is not installed, does not know the name, the weights do not fit, or the network has other strides or
    takes pictures of one size only.
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
            # By this way timm fits names to its networks of features, which are flattened, and leaves classifiers out.
            given = None if state is None else {"state_dict": dict(state)}
            self.network: nn.Module = timm.create_model(
                name, pretrained=pretrained or state is not None, pretrained_cfg_overlay=given, features_only=True
            )
        except Exception as error:  # timm raises many kinds: unknown names, no features, no network
            weights = " and its weights" if pretrained else " and the given weights" if state is not None else ""
            raise ConfigError(
                f"model.backbone.name: timm could not make {name!r} with features_only{weights}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if state is not None:
            held = {_flat(key) for key in state}
            missing = [k for k in self.network.state_dict() if _flat(k) not in held and "num_batches_tracked" not in k]
            if missing:  # timm would leave them as they are, random
                raise ConfigError(f"model.backbone.weights: the file does not fit timm:{name}: {len(missing)} tensors "
                                  f"missing; first: {missing[0]}")  # fmt: skip
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
                found = [tuple(f.shape) for f in self(next(self.parameters()).new_zeros(1, 3, H, W))]
        except Exception as error:  # each network has an error of its own for sizes that it was not made for
            raise ConfigError(
                f"model.backbone.name: timm:{name} does not take pictures of {H}x{W} pixels: {error}; needed is a "
                "network for any multiple of 32, as convolutional ones are"
            ) from error
        self.train()
        wanted = [(1, c, H // s, W // s) for c, s in zip(self.channels, STRIDES, strict=True)]
        if found != wanted:
            raise ConfigError(f"model.backbone.name: timm:{name} gives features {found}; needed are {wanted}")

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.network(x)
        return [features[i] for i in self.indices]

    def stem_and_stages(self) -> list[list[nn.Module]]:
        return [[self.network]]  # the configuration refuses frozen stages: timm's networks share no notion of them


def _flat(key: str) -> str:
    """A parameter's name whatever the nesting: networks of features have `stages_0` where the whole has `stages.0`."""
    return key.replace(".", "_")
