"""What several tests of networks do to a network first, and the folder of a user's own parts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.layers.blocks import ImplicitConv
from models.layers.necks import WeightedSum
from tests.models.custom_folder import BASE, GOOD, forget


def _with_statistics(model: nn.Module) -> nn.Module:
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


@pytest.fixture(scope="session")
def with_statistics() -> Callable[[nn.Module], nn.Module]:
    """Gives a network's norms and weighted sums values of their own, at which activations keep their scale, and
    returns it in eval mode: folding untouched ones proves nothing."""
    return _with_statistics


@pytest.fixture
def custom_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with `GOOD` as `mine.py` and `BASE`; Python forgets it afterwards, with all modules imported from it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine.py").write_text(GOOD)
    (tmp_path / "base.yaml").write_text(BASE)
    yield tmp_path
    forget(tmp_path)
