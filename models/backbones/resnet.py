"""ResNet and ResNeXt."""

from __future__ import annotations

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from models.backbones.stages import Backbone, keep_resolution
from models.config.network import BackboneConfig
from models.layers.blocks import fold_batchnorms
from models.layers.fuse import require_eval

# Block, depth of the four stages, groups, channels of a group at 64 planes.
RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int], int, int]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2), 1, 64),
    "resnet34": (BasicBlock, (3, 4, 6, 3), 1, 64),
    "resnet50": (Bottleneck, (3, 4, 6, 3), 1, 64),
    "resnet101": (Bottleneck, (3, 4, 23, 3), 1, 64),
    "resnext50_32x4d": (Bottleneck, (3, 4, 6, 3), 32, 4),
    "resnext101_32x4d": (Bottleneck, (3, 4, 23, 3), 32, 4),
    "resnext101_32x8d": (Bottleneck, (3, 4, 23, 3), 32, 8),
    "resnext101_64x4d": (Bottleneck, (3, 4, 23, 3), 64, 4),
}


class ResNet(Backbone):
    """torchvision's ResNet (He et al., 2015) and ResNeXt (Xie et al., 2017) without classifier, at any width.

    Parameter names are torchvision's, so its files load as they are. `style` says where a bottleneck strides:
    `pytorch` in its 3x3, `caffe` in its first 1x1, as the original networks did.
    """

    def __init__(self, config: BackboneConfig):
        super().__init__()
        block, depths, groups, group_width = RESNETS[config.name]
        planes = [scaled(c, config.width) for c in (64, 128, 256, 512)]
        self.dilated = config.dilated
        self.channels = tuple(self.without_c4([p * block.expansion for p in planes]))
        self.conv1 = nn.Conv2d(3, planes[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(planes[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        c_in = planes[0]
        for i, (p, depth) in enumerate(zip(planes, depths, strict=True), start=1):
            blocks: list[BasicBlock | Bottleneck] = []
            for j in range(depth):
                stride = 2 if i > 1 and j == 0 else 1
                downsample = None
                if stride != 1 or c_in != p * block.expansion:
                    shortcut = nn.Conv2d(c_in, p * block.expansion, 1, stride, bias=False)
                    downsample = nn.Sequential(shortcut, nn.BatchNorm2d(p * block.expansion))
                blocks.append(block(c_in, p, stride, downsample, groups, group_width))
                if config.style == "caffe" and stride == 2:
                    blocks[-1].conv1.stride, blocks[-1].conv2.stride = (2, 2), (1, 1)
                c_in = p * block.expansion
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
        if self.dilated:
            keep_resolution(self.stem_and_stages()[4])
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def stem_and_stages(self) -> list[list[nn.Module]]:
        stem = [self.conv1, self.bn1, self.relu, self.maxpool]
        return [stem, *([self.get_submodule(f"layer{i}")] for i in range(1, 5))]

    def fuse(self) -> nn.Module:
        """Every BatchNorm folded into the convolution it follows."""
        require_eval(self)
        fold_batchnorms(self)
        return self


def scaled(channels: int, width: float) -> int:
    """`channels * width` rounded to a multiple of 8, at least 16.

    Below 16 oneDNN's gradient of strided 1x1 shortcuts is broken (issue 6035).
    """
    return max(16, round(channels * width / 8) * 8)
