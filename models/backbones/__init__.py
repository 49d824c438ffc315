"""Backbones: images [B, 3, H, W] -> features C2..C5 at strides 4, 8, 16, 32."""

from __future__ import annotations

from models.backbones.custom import CustomBackbone
from models.backbones.stages import Backbone, set_norms
from models.backbones.timm import TimmBackbone
from models.backbones.weights import imagenet_state, load_state, published, read_state
from models.config.model import BackboneConfig
from models.config.network import is_custom

__all__ = ["Backbone", "CustomBackbone", "TimmBackbone", "build_backbone", "published"]


def build_backbone(config: BackboneConfig, load_weights: bool = True) -> Backbone:
    """The backbone named in `config`, with the widths of its features in `.channels`.

    load_weights: False does not load `config.weights`, for a checkpoint that brings its own. Raises `ConfigError` where
    the weights cannot be loaded.
    """
    backbone: Backbone
    weights = config.weights if load_weights else None
    if config.name.startswith("timm:"):
        state = read_state(weights) if weights not in (None, "imagenet") else None
        backbone = TimmBackbone(config.name.removeprefix("timm:"), weights == "imagenet", state)
    elif is_custom(config.name):
        backbone = CustomBackbone(config)
    else:
        backbone = config.part.load()(config)
    set_norms(backbone, config.norm, config.norm_eps)
    if weights is not None and not isinstance(backbone, TimmBackbone):
        shipped = weights in ("imagenet", "imagenet_v1")
        state = imagenet_state(config.name, weights == "imagenet_v1") if shipped else read_state(weights)
        target = backbone.network if isinstance(backbone, CustomBackbone) else backbone
        load_state(target, backbone.own_names(state), config.name, weights)
    backbone.freeze(config.frozen_stages, norms=config.norm == "frozen")
    return backbone
