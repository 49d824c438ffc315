"""RepVGG: Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021; QARepVGG: Chu et al., 2022."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from models.backbones.resnet import scaled
from models.backbones.stages import Backbone
from models.config.network import BackboneConfig
from models.layers.blocks import affine, folded
from models.layers.reparam import QARepVGGBlock, RepConv

# Table 2: blocks of the four stages; factors on 64, 128, 256 and on 512 channels. The stem has at most 64.
_SIZES: dict[str, tuple[tuple[int, int, int, int], float, float]] = {
    "a0": ((2, 4, 14, 1), 0.75, 2.5),
    "a1": ((2, 4, 14, 1), 1.0, 2.5),
    "a2": ((2, 4, 14, 1), 1.5, 2.75),
    "b0": ((4, 6, 16, 1), 1.0, 2.5),
    "b1": ((4, 6, 16, 1), 2.0, 4.0),
}

# Where published files have a block's parts, by ours: timm's, and those of RepVGG's authors.
_TIMM = {"conv3": "conv_kxk.conv", "bn3": "conv_kxk.bn", "conv1": "conv_1x1.conv", "bn1": "conv_1x1.bn",
         "bn0": "identity"}  # fmt: skip
_AUTHORS = {"conv3": "rbr_dense.conv", "bn3": "rbr_dense.bn", "conv1": "rbr_1x1.conv", "bn1": "rbr_1x1.bn",
            "bn0": "rbr_identity"}  # fmt: skip

_TENSORS = ("weight", "bias", "running_mean", "running_var")
_EPS = 1e-5  # of their norms and ours


def _authors_block(block: str) -> str:
    """Their name of our `stem` or `stages.0.1`: `stage0`, `stage1.1`."""
    if block == "stem":
        return "stage0"
    _, stage, index = block.split(".")
    return f"stage{int(stage) + 1}.{index}"


def as_qarepvgg(block: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a QARepVGG block that computes, at inference, what a RepVGG block of these weights does.

    The BatchNorms of the two small branches go into the 1x1 convolution and into the shift behind the 3x3. The norm
    behind the sum is new. Its mean is the sum's, as the three norms say. Its variance is theirs added up, as if the
    branches were independent; training replaces both by what it sees.
    """
    ours = {key: tensor for key, tensor in block.items() if key.partition(".")[0] in ("conv3", "bn3")}
    if not {"conv3.weight", "bn1.bias"} <= set(block):
        return ours  # incomplete: whoever loads it names what is missing
    kernel, shift = folded(block["conv1.weight"], None, _norm(block, "bn1"))
    mean, variance = ours["bn3.bias"] + block["bn1.bias"], ours["bn3.weight"] ** 2 + block["bn1.weight"] ** 2
    if "bn0.weight" in block:
        gain0, shift0 = affine(_norm(block, "bn0"))
        kernel, shift = kernel + torch.diag(gain0 - 1)[..., None, None], shift + shift0
        mean, variance = mean + block["bn0.bias"], variance + block["bn0.weight"] ** 2
    norm = {"weight": (variance + _EPS).sqrt(), "bias": mean, "running_mean": mean, "running_var": variance}
    ours |= {"conv1.weight": kernel, "bn3.bias": ours["bn3.bias"] + shift}
    ours |= {f"bn.{key}": tensor for key, tensor in norm.items()}
    return {key: tensor.detach().clone() for key, tensor in ours.items()}


def _norm(block: Mapping[str, Tensor], name: str) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(len(block[f"{name}.bias"]), eps=_EPS)
    norm.load_state_dict({key: block[f"{name}.{key}"] for key in _TENSORS}, strict=False)
    return norm


class RepVGG(Backbone):
    """Blocks of three branches, each of which deploys to one 3x3 convolution."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        family, size = config.name.split("_")
        self.quantizable = family == "qarepvgg"
        block = QARepVGGBlock if self.quantizable else RepConv
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

    def stem_and_stages(self) -> list[list[nn.Module]]:
        return [[self.stem], *([stage] for stage in self.stages)]

    def own_names(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Reads timm's names and those of RepVGG's authors, of the form for training.

        QARepVGG starts from RepVGG's weights, too: `as_qarepvgg` says how.
        """
        published: Callable[[str], str]
        if "stem.conv_kxk.conv.weight" in state:
            parts, published = _TIMM, str
        elif "stage0.rbr_dense.conv.weight" in state:
            parts, published = _AUTHORS, _authors_block
        else:
            return state
        blocks = [
            "stem",
            *(f"stages.{s}.{b}" for s, stage in enumerate(self.stages) for b in range(len(list(stage.children())))),
        ]
        ours: dict[str, Tensor] = {}
        for block in blocks:
            tensors = {
                f"{part}.{tensor}": state[f"{published(block)}.{name}.{tensor}"]
                for part, name in parts.items() for tensor in _TENSORS
                if f"{published(block)}.{name}.{tensor}" in state
            }  # fmt: skip
            if self.quantizable:
                tensors = as_qarepvgg(tensors)
            ours |= {f"{block}.{key}": tensor for key, tensor in tensors.items()}
        return ours
