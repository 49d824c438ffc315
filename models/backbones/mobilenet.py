"""MobileNetV2 (Sandler et al., 2018) and MobileNetV3-Large (Howard et al., 2019), torchvision's."""

from __future__ import annotations

import torchvision
from torch import Tensor, nn

from models.backbones.stages import Backbone, keep_resolution
from models.config.network import BackboneConfig
from models.layers.blocks import fold_sequence
from models.layers.fuse import require_eval

# Where the stem and the stages at strides 4, 8, 16 end in torchvision's `features`; the last ends with them.
MOBILENETS = {"mobilenet_v2": (2, 4, 7, 14), "mobilenet_v3_large": (2, 4, 7, 13)}


class MobileNet(Backbone):
    """torchvision's network without classifier. C5 is its last 1x1 convolution, C2..C4 the last block of a stride.

    Parameter names are torchvision's, so its files load as they are.
    """

    def __init__(self, config: BackboneConfig):
        super().__init__()
        build = {"mobilenet_v2": torchvision.models.mobilenet_v2,
                 "mobilenet_v3_large": torchvision.models.mobilenet_v3_large}[config.name]  # fmt: skip
        self.features: nn.Sequential = build(weights=None, width_mult=config.width).features
        self.ends = [*MOBILENETS[config.name], len(self.features)]
        self.dilated = config.dilated
        channels = tuple(self.features[end - 1].out_channels for end in self.ends[1:])
        self.channels = (channels[0], channels[1], channels[3]) if self.dilated else channels
        if self.dilated:
            keep_resolution(self.stem_and_stages()[4])

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for stage in self.stem_and_stages():
            for block in stage:
                x = block(x)
            features.append(x)
        return [features[1], features[2], features[4]] if self.dilated else features[1:]

    def stem_and_stages(self) -> list[list[nn.Module]]:
        blocks = list(self.features)
        return [blocks[start:end] for start, end in zip([0, *self.ends[:-1]], self.ends, strict=True)]

    def fuse(self) -> nn.Module:
        """Every BatchNorm folded into the convolution it follows."""
        require_eval(self)
        for module in self.modules():
            if isinstance(module, nn.Sequential):
                fold_sequence(module)
        return self
