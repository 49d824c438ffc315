"""What all backbones share: features of stages, frozen stages, the kind of norm, a dilated last stage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.layers.blocks import norm_layer

T = TypeVar("T")


class Backbone(nn.Module, ABC):
    """Images [B, 3, H, W] -> C2..C5 at strides 4, 8, 16, 32; or, dilated, C2, C3 and C5 at 4, 8, 16."""

    channels: tuple[int, ...]
    """Widths of the features, in order."""
    dilated = False
    """Whether the last stage keeps the resolution of C4, whose place its features take."""

    def __init__(self) -> None:
        super().__init__()
        self._fixed: list[nn.Module] = []  # not an nn.ModuleList, which would register these modules twice

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for stage in self.stem_and_stages():
            for block in stage:
                x = block(x)
            features.append(x)
        return self.without_c4(features[1:])

    @abstractmethod
    def stem_and_stages(self) -> Sequence[Sequence[nn.Module]]:
        """Five lists of modules in the order in which they run: the stem's, and those of the stages of C2..C5."""

    def without_c4(self, stages: Sequence[T]) -> list[T]:
        """What belongs to the features, of something for each of the four stages: all, or where dilated, not C4's."""
        return [*stages[:2], stages[3]] if self.dilated else list(stages)

    def own_names(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Published weights under this network's names. `state` comes back as it is where no names are known for it."""
        return state

    def freeze(self, stages: int, norms: bool) -> None:
        """Freeze the first `stages` of stem and stages, and all BatchNorms if `norms`.

        What is frozen does not learn, and stays in eval mode while the backbone trains.
        """
        self._fixed += [module for stage in self.stem_and_stages()[:stages] for module in stage]
        self._fixed += [m for m in self.modules() if norms and isinstance(m, _BatchNorm)]
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
        if isinstance(child, nn.BatchNorm2d) and kind in ("gn", "sync"):
            if kind == "gn":
                child = norm_layer("gn", child.num_features)
            else:
                child = nn.SyncBatchNorm(child.num_features, child.eps, child.momentum)
            setattr(module, name, child)
        if eps is not None and isinstance(child, (_BatchNorm, nn.GroupNorm)):
            child.eps = eps
        set_norms(child, kind, eps)


def keep_resolution(stage: Sequence[nn.Module]) -> None:
    """Dilate a stage that halves its input: its strides become 1, and convolutions behind them are dilated by 2.

    At every second cell it computes exactly what it computed before, so trained weights stay valid.
    """
    strided = False
    for conv in (module for part in stage for module in part.modules() if isinstance(module, nn.Conv2d)):
        if conv.stride == (2, 2):
            conv.stride, strided = (1, 1), True
        elif strided and conv.kernel_size != (1, 1):
            conv.dilation, conv.padding = (2, 2), tuple(2 * (side // 2) for side in conv.kernel_size)
