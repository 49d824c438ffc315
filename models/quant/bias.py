"""Bias correction: the mean error that rounding brings into a channel goes into the bias.

Rounding weights to int8 shifts the mean of an output channel, most where a channel has few weights, as in depthwise
convolutions and in a stem: each of its 9 or 27 roundings counts, and a ReLU6 behind it passes the shift on. After Nagel
et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, section 4.2, in its empirical
form (appendix D).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.quant.convolution import QuantConv2d
from models.quant.graph import QuantDetector

_Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]


@torch.no_grad()
def correct_biases(network: QuantDetector, images: Tensor) -> int:
    """Add to each bias what makes the mean of its channel, over `images`, that of the float network.

    images: uint8 [B, H, W, 3], not empty; they go through the network at once. Convolutions are corrected in the order
    of their calls, each behind those before it. One that pyramid levels share, with a mean of its own on each, stays as
    it is. `network` has its ranges, is in eval mode, and is quantized as a whole afterwards. Returns the number of
    convolutions that were corrected.
    """
    assert len(images) and not network.training
    wanted: dict[str, list[Tensor]] = defaultdict(list)
    network.enable([])
    _run(network, images, lambda name, conv: lambda _, inputs, out: wanted[name].append(_mean(out)))
    network.enable()
    once = {name for name, means in wanted.items() if len(means) == 1}

    def correction(name: str, conv: QuantConv2d) -> _Hook:
        def correct(_: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
            if name not in once or len(inputs) > 1:  # with the gain and the shift of a level
                once.discard(name)
                return None
            missing = wanted[name][0] - _mean(out)
            conv.bias = nn.Parameter(missing if conv.bias is None else conv.bias + missing)
            return out + missing[:, None, None]

        return correct

    _run(network, images, correction)
    return len(once)


def _run(network: QuantDetector, images: Tensor, hook: Callable[[str, QuantConv2d], _Hook]) -> None:
    handles = [conv.register_forward_hook(hook(name, conv)) for name, conv in network.layers.items()]
    try:
        network(images)
    finally:
        for handle in handles:
            handle.remove()


def _mean(out: Tensor) -> Tensor:
    """[c] of [B, c, h, w]."""
    return out.mean((0, 2, 3))
