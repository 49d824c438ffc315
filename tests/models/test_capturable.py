"""What a CUDA graph cannot take down is not in the deployed graph, seen without a GPU: PyTorch's fake tensors stand on
a device cuda and run the module for real as far as devices, types and shapes go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.deploy.graph import Deploy
from models.deploy.graph_input import FrameGeometry, GraphInput
from models.detector import Detector
from tests.models.small import SIZE, small

ASKS_THE_HOST = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "repeat_interleave")
"""Operators whose result the host has to see before it can go on."""


class Watch(TorchDispatchMode):
    """Collects operators that touch the host's memory or wait for the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.illegal: list[str] = []
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = str(func)
        self.seen.add(name)
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)}
        if "cpu" in devices or any(operator in name for operator in ASKS_THE_HOST):
            self.illegal.append(name)
        return out


def watched(module: nn.Module, size_hw: tuple[int, int] = SIZE) -> Watch:
    """Runs a module on two pictures of `size_hw`, all on a GPU that is not there."""
    with FakeTensorMode(), torch.no_grad():
        there = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
            for name, tensor in (*module.named_parameters(), *module.named_buffers())
        }
        images = torch.empty(2, *size_hw, 3, dtype=torch.uint8, device="cuda")
        with Watch() as watch:
            found = torch.func.functional_call(module, there, (images,))
        assert all(part.device.type == "cuda" for part in found)
    return watch


@pytest.mark.parametrize(
    "keys",
    [{"detector": "atss"}, {"detector": "retinanet"}, {"detector": "fcos"}, {"detector": "gfl"}, {"detector": "gflv2"},
     {"backbone": {"name": "repvgg_a0", "width": 0.125}},
     {"postprocess": {"level_candidates": 50, "threshold_on": "class"}}],
)  # fmt: skip
def test_it_neither_waits_nor_copies_from_the_host(keys):
    deploy = Deploy(Detector(small(**keys)).eval()).eval()
    watch = watched(deploy)
    assert watch.illegal == [] and {"aten.convolution.default", "aten.topk.default"} <= watch.seen


def test_nor_does_the_letterbox_inside():
    frame = FrameGeometry((48, 96), (48, 96), SIZE, 114)
    assert watched(Deploy(Detector(small()).eval(), GraphInput(frame=frame)).eval(), (48, 96)).illegal == []


def test_the_watch_sees_what_it_looks_for():
    class Copies(nn.Module):
        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            return (images * images.new_tensor([1, 2, 3]),)

    class Waits(nn.Module):
        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            return (images.float().flatten().topk(1).values.nonzero(),)

    assert watched(Copies()).illegal
    with pytest.raises(Exception, match="nonzero"):  # a shape that depends on values
        watched(Waits())
