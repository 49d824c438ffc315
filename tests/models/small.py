"""A small network, what it is fed, and how numbers are compared: what tests of networks share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.config.model import AnchorConfig, ModelConfig, model_config
from models.detector import Detector, Raw
from models.layers.blocks import ImplicitConv
from models.layers.necks import WeightedSum
from models.loss import Losses, detection_loss
from models.priors import Priors, feature_sizes, priors

SIZE = (64, 96)
STRIDES = (8, 16, 32, 64, 128)
BOXES = torch.tensor(
    [[[4.0, 6.0, 40.0, 50.0], [30.0, 8.0, 90.0, 60.0]], [[10.0, 10.0, 34.0, 30.0], [0.0, 0.0, 0.0, 0.0]]]
)
"""Objects of two images of `SIZE`. The last one is padding, as its label says."""
LABELS = torch.tensor([[0, 2], [1, -1]])


def small(**keys: Any) -> ModelConfig:
    """Three classes at `SIZE` on a thin ResNet-18. Each of `keys` replaces a whole section."""
    return model_config({
        "classes": ["a", "b", "c"], "input_size_hw": list(SIZE), "backbone": {"name": "resnet18", "width": 0.125},
        "neck": {"channels": 16}, "head": {"depth": 1}, "postprocess": {"candidates": 50, "detections": 10}, **keys,
    })  # fmt: skip


def images(count: int = 2) -> Tensor:
    """Noise as uint8 pictures [count, 64, 96, 3], the same at every call."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, *SIZE, 3), dtype=torch.uint8, generator=generator)


def grid_for(size_hw: tuple[int, int], anchors: AnchorConfig) -> Priors:
    """The priors of P3 to P7."""
    return priors(feature_sizes(size_hw, (3, 7)), STRIDES, anchors)


def losses_without_objects(config: ModelConfig, raw: Raw, grid: Priors, rows: int) -> Losses:
    """The losses of two pictures with `rows` of padding and no object, which are then propagated to `raw`."""
    losses = detection_loss(config, raw, grid, torch.zeros(2, rows, 4), torch.full((2, rows), -1))
    losses.total.backward()
    return losses


def descend(model: Detector, steps: int) -> list[list[float]]:
    """Train on `images()` with `BOXES`; the losses of each step, in the order of `Losses`."""
    optimizer, history = torch.optim.AdamW(model.parameters(), 3e-3), []
    for _ in range(steps):
        losses = detection_loss(model.config, model(images()), model.priors(), BOXES, LABELS)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        history.append([part.item() for part in losses])
    return history


def close(ours: Tensor, theirs: np.ndarray, atol: float = 1e-4) -> None:
    """Asserts that numbers agree with golden ones."""
    np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-4, atol=atol)


def with_statistics(model: nn.Module) -> nn.Module:
    """Gives norms and weighted sums values of their own, at which activations keep their scale, and returns the network
    in eval mode: folding untouched ones proves nothing.
    """
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for tensor, low, high in (
                (module.weight.data, 0.5, 1.5), (module.bias.data, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3), (module.running_var, 0.5, 2.0),
            ):  # fmt: skip
                tensor.uniform_(low, high, generator=generator)
        elif isinstance(module, WeightedSum):
            module.weights.data.uniform_(-0.5, 2.0, generator=generator)
        elif isinstance(module, ImplicitConv):
            for name, p in module.named_parameters():
                if "implicit" in name or p.ndim == 1:
                    p.data.uniform_(-0.5, 1.5, generator=generator)
    return model.eval()
