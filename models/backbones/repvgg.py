"""RepVGG: Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021; QARepVGG: Chu et al., 2022."""

from __future__ import annotations

from torch import Tensor, nn

from models.backbones.resnet import scaled
from models.backbones.stages import Backbone
from models.config.network import BackboneConfig
from models.layers.reparam import QARepVGGBlock, RepConv

# Table 2: blocks of the four stages; factors on 64, 128, 256 and on 512 channels. The stem has at most 64.
_SIZES: dict[str, tuple[tuple[int, int, int, int], float, float]] = {
    "a0": ((2, 4, 14, 1), 0.75, 2.5),
    "a1": ((2, 4, 14, 1), 1.0, 2.5),
    "a2": ((2, 4, 14, 1), 1.5, 2.75),
    "b0": ((4, 6, 16, 1), 1.0, 2.5),
    "b1": ((4, 6, 16, 1), 2.0, 4.0),
}


class RepVGG(Backbone):
    """Blocks of three branches, each of which deploys to one 3x3 convolution."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        family, size = config.name.split("_")
        block = RepConv if family == "repvgg" else QARepVGGBlock
        blocks, a, b = _SIZES[size]
        widths = (min(64, 64 * a), 64 * a, 128 * a, 256 * a, 512 * b)
        channels = [scaled(round(c), config.width) for c in widths]
        self.channels = tuple(channels[1:])
        self.stem = block(3, channels[0], stride=2)
        self.stages = nn.ModuleList()
        for count, c_in, c_out in zip(blocks, channels[:-1], channels[1:], strict=True):
            stage = [block(c_in, c_out, stride=2)]
            stage += [block(c_out, c_out) for _ in range(count - 1)]
            self.stages.append(nn.Sequential(*stage))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [self.stem(x)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features[1:]

    def stem_and_stages(self) -> list[list[nn.Module]]:
        return [[self.stem], *([stage] for stage in self.stages)]
