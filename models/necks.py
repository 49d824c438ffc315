"""Feature pyramid: Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017; P6 and P7 from
RetinaNet, section 4."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from models.config import NeckConfig
from models.layers import ConvNorm


class FPN(nn.Module):
    """C2..C5 -> levels `config.levels`, each [B, channels, h, w]."""

    def __init__(self, config: NeckConfig, c_in: Sequence[int]):
        super().__init__()
        self.first, self.last = config.levels
        self.p6_from_c5, self.p7_relu = config.p6_from == "c5", config.p7_relu
        c = config.channels
        levels = range(self.first, 6)
        self.laterals = nn.ModuleList(ConvNorm(c_in[i - 2], c, 1, norm=config.norm, relu=False) for i in levels)
        self.outputs = nn.ModuleList(ConvNorm(c, c, 3, norm=config.norm, relu=False) for _ in levels)
        self.extra = nn.ModuleList()
        for level in range(6, self.last + 1):
            source = c_in[-1] if level == 6 and self.p6_from_c5 else c
            self.extra.append(ConvNorm(source, c, 3, stride=2, norm=config.norm, relu=False))
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_uniform_(m.weight, a=1)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        merged = [lateral(f) for lateral, f in zip(self.laterals, features[self.first - 2 :], strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            # By size, not by factor 2: levels of odd size round up.
            merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], size=merged[i - 1].shape[-2:], mode="nearest")
        levels = [output(m) for output, m in zip(self.outputs, merged, strict=True)]
        for i, extra in enumerate(self.extra):
            source = features[-1] if i == 0 and self.p6_from_c5 else levels[-1]
            levels.append(extra(F.relu(source) if i == 1 and self.p7_relu else source))
        return levels
