"""Backbones: images [B, 3, H, W] -> features C2..C5 at strides 4, 8, 16, 32."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock, Bottleneck

from models.config import BackboneConfig
from models.repvgg import RepVGG
from models.typed import ConfigError

_RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


class ResNet(nn.Module):
    """torchvision's ResNet (He et al., 2015; stride in the 3x3) without its classifier, at any width.

    Parameter names are torchvision's, so its files load as they are.
    """

    def __init__(self, block: type[BasicBlock] | type[Bottleneck], depths: tuple[int, ...], width: float = 1.0):
        super().__init__()
        planes = [_scaled(c, width) for c in (64, 128, 256, 512)]
        self.channels = tuple(p * block.expansion for p in planes)
        self.conv1 = nn.Conv2d(3, planes[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(planes[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        c_in = planes[0]
        for i, (p, depth) in enumerate(zip(planes, depths, strict=True), start=1):
            blocks: list[nn.Module] = []
            for j in range(depth):
                stride = 2 if i > 1 and j == 0 else 1
                downsample = None
                if stride != 1 or c_in != p * block.expansion:
                    shortcut = nn.Conv2d(c_in, p * block.expansion, 1, stride, bias=False)
                    downsample = nn.Sequential(shortcut, nn.BatchNorm2d(p * block.expansion))
                blocks.append(block(c_in, p, stride, downsample))
                c_in = p * block.expansion
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        features = []
        for i in range(1, 5):
            x = self.get_submodule(f"layer{i}")(x)
            features.append(x)
        return features

    def fuse(self) -> nn.Module:
        """Every BatchNorm folded into the convolution it follows: convN with bnN, and the shortcut's pair."""
        for module in self.modules():
            pairs = [("0", "1")] if isinstance(module, nn.Sequential) else [(f"conv{i}", f"bn{i}") for i in (1, 2, 3)]
            for conv_name, bn_name in pairs:
                conv, bn = getattr(module, conv_name, None), getattr(module, bn_name, None)
                if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
                    setattr(module, conv_name, fuse_conv_bn_eval(conv, bn))
                    setattr(module, bn_name, nn.Identity())
        return self


def build_backbone(config: BackboneConfig, load_weights: bool = True) -> ResNet | RepVGG:
    """The backbone named in `config`; `.channels` are those of C2..C5.

    Raises `ConfigError` where the weights it asks for cannot be had. `load_weights=False` leaves them out, for
    a checkpoint that brings its own.
    """
    backbone: ResNet | RepVGG
    if config.name in _RESNETS:
        block, depths = _RESNETS[config.name]
        backbone = ResNet(block, depths, config.width)
    else:  # RepVGG-A0, table 2: widths 0.75 of 64, 128, 256 and 2.5 of 512
        c0, c1, c2, c3, c4 = (_scaled(c, config.width) for c in (48, 48, 96, 192, 1280))
        backbone = RepVGG((2, 4, 14, 1), (c0, c1, c2, c3, c4))
    if config.weights is not None and load_weights:
        _load_weights(backbone, config)
    return backbone


def imagenet_at_hand(name: str, timeout: float = 3.0) -> bool:
    """Whether torchvision's ImageNet weights for `name` are in its cache, or its server answers within seconds."""
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    if (Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]).is_file():
        return True
    try:
        with urlopen(Request(url, method="HEAD"), timeout=timeout) as answer:
            return bool(answer.status == 200)
    except OSError:  # no network, no such host, refused, too slow
        return False


def _scaled(channels: int, width: float) -> int:
    """Rounded to 8, at least 16: below that oneDNN's gradient of strided 1x1 shortcuts is broken (issue 6035)."""
    return max(16, round(channels * width / 8) * 8)


def _load_weights(backbone: nn.Module, config: BackboneConfig) -> None:
    assert config.weights is not None
    if config.weights == "imagenet":
        enum = torchvision.models.get_model_weights(config.name).DEFAULT
        try:
            state = enum.get_state_dict(progress=True, check_hash=True)
        except (URLError, OSError, RuntimeError) as error:
            raise ConfigError(
                f"model.backbone.weights: torchvision could not download {enum.url} ({error}); on a machine without "
                "a network, fetch that file elsewhere and set weights: path/to/it.pth, or weights: null"
            ) from error
    else:
        path = Path(config.weights)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise ConfigError(f"model.backbone.weights: no file at {path}") from None
        except Exception as error:  # torch raises many kinds for files that are not checkpoints
            raise ConfigError(f"model.backbone.weights: {path} is not a file of tensors: {error}") from error
    if not isinstance(state, dict):
        raise ConfigError(f"model.backbone.weights: expected a state dict, got {type(state).__name__}")
    wanted = backbone.state_dict()
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    wrong = [k for k in wanted if k in state and state[k].shape != wanted[k].shape]
    if missing or wrong:
        raise ConfigError(
            f"model.backbone.weights: {config.weights} does not fit {config.name}: {len(missing)} tensors missing, "
            f"{len(wrong)} of another shape; first: {(missing + wrong)[0]}"
        )
    backbone.load_state_dict({k: state[k] for k in wanted if k in state}, strict=False)
