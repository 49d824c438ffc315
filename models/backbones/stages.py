"""What all backbones share: features by stage, frozen stages, the kind of their norms, a last stage that keeps its
resolution."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.layers.blocks import norm_layer


class Backbone(nn.Module, ABC):
    """Images [B, 3, H, W] -> C2..C5 at strides 4, 8, 16, 32; or, dilated, C2, C3 and C5 at 4, 8, 16."""

    channels: tuple[int, ...]
    """Of the features, in order."""

    def __init__(self) -> None:
        super().__init__()
        self._fixed: list[nn.Module] = []  # a plain list: these modules have their names elsewhere already

    @abstractmethod
    def forward(self, x: Tensor) -> list[Tensor]: ...

    @abstractmethod
    def stem_and_stages(self) -> Sequence[Sequence[nn.Module]]:
        """The modules of the stem and of the four stages, which make C2..C5."""

    def freeze(self, stages: int, norms: bool) -> None:
        """Hold the first `stages` of stem and stages, and all BatchNorms if `norms`, as they are, in train mode too."""
        self._fixed += [module for stage in self.stem_and_stages()[:stages] for module in stage] if stages else []
        self._fixed += [m for m in self.modules() if isinstance(m, _BatchNorm)] if norms else []
        for module in self._fixed:
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        for module in self._fixed:
            module.eval()
        return self


def set_norms(module: nn.Module, kind: Literal["bn", "frozen", "sync", "gn"], eps: float | None) -> None:
    """Turn every BatchNorm in `module` into a norm of `kind`, with its own epsilon or `eps`."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d) and kind == "gn":
            child = norm_layer("gn", child.num_features)
            setattr(module, name, child)
        elif isinstance(child, nn.BatchNorm2d) and kind == "sync":
            child = nn.SyncBatchNorm(child.num_features, child.eps, child.momentum)
            setattr(module, name, child)
        if eps is not None and isinstance(child, (_BatchNorm, nn.GroupNorm)):
            child.eps = eps
        set_norms(child, kind, eps)


def keep_resolution(stage: Sequence[nn.Module]) -> None:
    """Let a stage that halves its input not do so: strides become 1, and what came behind them is dilated by 2.

    At every second cell it computes exactly what it computed before, so that its weights keep their meaning.
    """
    strided = False
    for part in stage:
        for conv in part.modules():
            if not isinstance(conv, nn.Conv2d):
                continue
            if conv.stride == (2, 2):
                conv.stride, strided = (1, 1), True
            elif strided and conv.kernel_size != (1, 1):
                conv.dilation, conv.padding = (2, 2), tuple(2 * (side // 2) for side in conv.kernel_size)
