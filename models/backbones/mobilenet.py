"""MobileNetV2 (Sandler et al., 2018) and MobileNetV3-Large (Howard et al., 2019), torchvision's."""

from __future__ import annotations

import torchvision
from torch import nn

from models.backbones.stages import Backbone, keep_resolution
from models.config.network import BackboneConfig
from models.layers.blocks import fold_batchnorms
from models.layers.fuse import require_eval

# Index in torchvision's `features` at which the stem and the stages of strides 4, 8, 16 end; the last is the rest.
MOBILENETS = {"mobilenet_v2": (2, 4, 7, 14), "mobilenet_v3_large": (2, 4, 7, 13)}


class MobileNet(Backbone):
    """torchvision's network without classifier. C5 is its last 1x1 convolution, C2..C4 the last block of each stride.

    Parameter names are torchvision's, so its files load as they are.
    """

    def __init__(self, config: BackboneConfig):
        super().__init__()
        network = torchvision.models.get_model(config.name, weights=None, width_mult=config.width)
        self.features: nn.Sequential = network.features
        self.ends = [*MOBILENETS[config.name], len(self.features)]
        self.dilated = config.dilated
        self.channels = tuple(self.without_c4([self.features[end - 1].out_channels for end in self.ends[1:]]))
        if self.dilated:
            keep_resolution(self.stem_and_stages()[4])

    def stem_and_stages(self) -> list[list[nn.Module]]:
        blocks = list(self.features)
        return [blocks[start:end] for start, end in zip([0, *self.ends[:-1]], self.ends, strict=True)]

    def fuse(self) -> nn.Module:
        """Every BatchNorm folded into the convolution it follows."""
        require_eval(self)
        fold_batchnorms(self)
        return self
