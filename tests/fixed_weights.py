"""Networks whose weights are arithmetic: the same to the last bit on every processor, without a training.

What a training ends with differs from processor to processor: rounding grows over its steps. A test that follows one
signal through a network can say more of one that does not change.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from models.detector import Detector as Network


def fix_weights(model: Network, images: torch.Tensor) -> Network:
    """Give every kernel pseudo-random numbers of unit gain, and the norms the statistics of `images` [B, H, W, 3].

    Numbers come from a multiplication modulo 2**32, in integers; only the statistics are rounded as the processor
    rounds. Residual branches of ResNets add a fifth of what they do at first, so that a rounding stays as small as in a
    trained network. Other biases and weights of norms stay as they are made, which is constants.
    """
    with torch.no_grad():
        for number, (name, p) in enumerate(sorted(model.named_parameters())):
            if name.endswith(".bn2.weight"):
                p.fill_(0.2)
            if p.ndim < 2:
                continue
            index = np.arange(p.numel(), dtype=np.uint64) + np.uint64(1_000_003 * (number + 1))
            mixed = index * np.uint64(2_654_435_761) % np.uint64(2**32)
            mixed = (mixed ^ (mixed >> np.uint64(15))) * np.uint64(2_246_822_519) % np.uint64(2**32)
            uniform = (mixed.astype(np.float64) / 2**32 - 0.5) * 2  # [-1, 1), variance 1/3
            gain = math.sqrt(6 / max(1, p.numel() // p.shape[0]))
            p.copy_(torch.from_numpy((uniform * gain).astype(np.float32)).reshape(p.shape))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        model.train()
        model(images)
    return model.eval()
