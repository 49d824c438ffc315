"""The quality of a box read off the distributions of its sides (`quality: distribution`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

TOPK, HIDDEN = 4, 64


class DistributionQuality(nn.Module):
    """Codes [B, N, 4 * bins] of `box.code: dfl` -> quality logits [B, N].

    Li et al., Generalized Focal Loss V2, CVPR 2021, section 3.2: a sharp distribution is a box that the network is sure
    of. Each side gives its 4 largest probabilities and their mean, and two layers make one number of the 20. The
    "mean" is that of the 4, as in the authors' code: the mean of the whole distribution is always 1 / bins. As there,
    nothing is detached, so the loss of classes also sharpens distributions.

    The layers are the paper's 1x1 convolutions, written as matrices, because their input has no rows and columns. In 8
    bits they stay float: 1344 weights save no time, and 256 steps are coarse for probabilities.
    """

    def __init__(self, bins: int):
        super().__init__()
        self.bins = bins
        self.hidden = nn.Linear(4 * (TOPK + 1), HIDDEN)
        self.out = nn.Linear(HIDDEN, 1)

    def forward(self, codes: Tensor) -> Tensor:
        probabilities = codes.unflatten(-1, (4, self.bins)).softmax(dim=-1)
        largest = probabilities.topk(TOPK, dim=-1).values  # [B, N, 4, 4], falling
        statistics = torch.cat([largest, largest.mean(dim=-1, keepdim=True)], dim=-1)
        return self.out(self.hidden(statistics.flatten(-2)).relu()).squeeze(-1)
