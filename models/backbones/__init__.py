"""Backbones: images [B, 3, H, W] -> features C2..C5 at strides 4, 8, 16, 32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import torch
import torchvision
from torch import Tensor, nn

from isodet.strict import ConfigError
from models.backbones.custom import CustomBackbone
from models.backbones.stages import Backbone, set_norms
from models.backbones.timm import TimmBackbone
from models.config.model import BackboneConfig
from models.config.network import is_custom
from models.tensor_files import TensorFileError, load_tensors

__all__ = ["Backbone", "CustomBackbone", "TimmBackbone", "build_backbone", "imagenet_at_hand"]


def build_backbone(config: BackboneConfig, load_weights: bool = True) -> Backbone:
    """The backbone named in `config`, with the widths of its features in `.channels`.

    load_weights: False does not load `config.weights`, for a checkpoint that brings its own. Raises `ConfigError` where
    the weights cannot be loaded.
    """
    backbone: Backbone
    weights = config.weights if load_weights else None
    if config.name.startswith("timm:"):
        state = _read_weights(weights) if weights not in (None, "imagenet") else None
        backbone = TimmBackbone(config.name.removeprefix("timm:"), weights == "imagenet", state)
    elif is_custom(config.name):
        backbone = CustomBackbone(config)
    else:
        backbone = config.part.load()(config)
    set_norms(backbone, config.norm, config.norm_eps)
    if weights is not None and not isinstance(backbone, TimmBackbone):
        _load_weights(backbone.network if isinstance(backbone, CustomBackbone) else backbone, config.name, weights)
    backbone.freeze(config.frozen_stages, norms=config.norm == "frozen")
    return backbone


def imagenet_at_hand(name: str, timeout: float = 3.0) -> bool:
    """Whether torchvision has its ImageNet weights of `name` in its cache, or its server answers within `timeout` s."""
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    if (Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]).is_file():
        return True
    try:
        with urlopen(Request(url, method="HEAD"), timeout=timeout) as answer:
            return bool(answer.status == 200)
    except OSError:  # no network, no such host, refused, too slow
        return False


def _read_weights(path: str) -> Mapping[str, Tensor]:
    try:
        state = load_tensors(path)
    except TensorFileError as error:
        raise ConfigError(f"model.backbone.weights: {path}: {error}") from error
    if not isinstance(state, dict):
        raise ConfigError(f"model.backbone.weights: {path}: expected a state dict, got {type(state).__name__}")
    return state


def _load_weights(backbone: nn.Module, name: str, weights: str) -> None:
    if weights in ("imagenet", "imagenet_v1"):
        enums = torchvision.models.get_model_weights(name)
        enum = enums.DEFAULT if weights == "imagenet" else enums["IMAGENET1K_V1"]
        try:
            state = enum.get_state_dict(progress=True, check_hash=True)
        except (URLError, OSError, RuntimeError) as error:
            raise ConfigError(
                f"model.backbone.weights: torchvision could not download {enum.url} ({error}); on a machine without "
                "a network, fetch that file elsewhere and set weights: path/to/it.pth, or weights: null"
            ) from error
    else:
        state = _read_weights(weights)
    wanted = backbone.state_dict()
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    wrong = [k for k in wanted if k in state and state[k].shape != wanted[k].shape]
    if missing or wrong:
        raise ConfigError(
            f"model.backbone.weights: {weights} does not fit {name}: {len(missing)} tensors missing, "
            f"{len(wrong)} of another shape; first: {(missing + wrong)[0]}"
        )
    backbone.load_state_dict({k: state[k] for k in wanted if k in state}, strict=False)
