"""The error of a network's raw outputs when a single layer is quantized."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from export.options import Progress
from models.quant import QuantDetector


@torch.no_grad()
def output_errors(
    network: QuantDetector, batches: Sequence[Tensor], progress: Progress | None = None
) -> dict[str, float]:
    """By layer, the error of the raw outputs on `batches` (uint8 [B, H, W, 3]) when only that layer is quantized.

    It is the root mean square of the difference from the float network, in standard deviations of each output, over the
    three outputs together. Afterwards the whole network is quantized again.
    """
    network.enable([])
    references = [_outputs(network, batch) for batch in batches]
    spreads = [torch.cat(parts).var().clamp(min=1e-12) for parts in zip(*references, strict=True)]
    sizes = [sum(part.numel() for part in parts) for parts in zip(*references, strict=True)]
    errors = {}
    names = list(network.layers)
    for done, name in enumerate(names, start=1):
        network.enable([name])
        squares = [torch.zeros(()) for _ in spreads]
        for batch, reference in zip(batches, references, strict=True):
            for i, (output, exact) in enumerate(zip(_outputs(network, batch), reference, strict=True)):
                squares[i] += (output - exact).square().sum()
        noise = [float(s / (size * v)) for s, size, v in zip(squares, sizes, spreads, strict=True)]
        errors[name] = math.sqrt(sum(noise) / len(noise))
        if progress is not None:
            progress("output error, layers", done, len(names))
    network.enable()
    return errors


def _outputs(network: QuantDetector, batch: Tensor) -> list[Tensor]:
    return [output.flatten() for output in network(batch) if output is not None]
