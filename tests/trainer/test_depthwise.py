"""Fast gradients of depthwise convolutions: torch's own numbers, for every shape, and only where they are slow."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.backbones import build_backbone
from models.config.model import BackboneConfig, model_config
from models.detector import Detector
from models.quant import quantize
from trainer.devices.allocator import freed_memory_kept
from trainer.devices.depthwise import use_fast_depthwise

LARGEST_ERROR = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 0.01}
"""Relative to the largest gradient, of sums in another order. bfloat16 has a step of 2**-8 = 0.004."""


def gradients(conv: nn.Conv2d, x: Tensor, towards: Tensor) -> list[Tensor]:
    """The output, and the gradients of the input and of the parameters."""
    x = x.clone().requires_grad_()
    conv.zero_grad()
    output = conv(x)
    output.backward(towards)
    found = [output.detach(), x.grad, *(parameter.grad for parameter in conv.parameters())]
    assert all(tensor is not None for tensor in found)
    return [tensor for tensor in found if tensor is not None]


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@settings(max_examples=80, deadline=None)
@given(
    kernel=st.sampled_from((3, 5, 7, 9)),
    stride=st.sampled_from((1, 2)),
    padding=st.integers(0, 9),
    more_hw=st.tuples(st.integers(0, 14), st.integers(0, 14)),
    channels=st.integers(2, 24),
    bias=st.booleans(),
    dtype=st.sampled_from(tuple(LARGEST_ERROR)),
)
def test_the_gradients_are_those_of_torch(
    kernel: int, stride: int, padding: int, more_hw: tuple[int, int], channels: int, bias: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(channels, channels, kernel, stride, padding, groups=channels, bias=bias).to(dtype)
    fast = copy.deepcopy(plain)
    assert use_fast_depthwise(fast) == (kernel > 3 or stride == 2)
    height, width = (max(1, kernel - 2 * padding) + more for more in more_hw)
    x = channels_last(torch.randn(2, channels, height, width, dtype=dtype))
    towards = torch.randn_like(plain(x))
    found = gradients(fast, x, towards)
    assert torch.equal(found[0], plain(x))  # nothing else computes the output
    expected = gradients(plain.double(), x.double(), towards.double())  # in bfloat16 torch's own are no reference
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert ours.shape == theirs.shape and ours.dtype == dtype
        error = (ours.double() - theirs).abs().max() / theirs.abs().max().clamp(min=1e-3)
        assert error <= LARGEST_ERROR[dtype]


def test_a_gradient_that_is_not_channels_last_or_not_wanted() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 8, 5, 2, 2, groups=8)
    fast = copy.deepcopy(plain)
    use_fast_depthwise(fast)
    x = channels_last(torch.randn(2, 8, 11, 12))
    towards = torch.randn_like(plain(x)).contiguous()
    for ours, theirs in zip(gradients(fast, x, towards), gradients(plain, x, towards), strict=True):
        torch.testing.assert_close(ours, theirs)
    fast.weight.requires_grad_(False)  # as in a frozen stage
    x.requires_grad_()
    fast(x).backward(towards)
    assert x.grad is not None and fast.weight.grad is not None  # that of before
    with torch.no_grad():
        assert fast(x).grad_fn is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, None], ids=["bfloat16", "float32"])
def test_a_whole_backbone_under_autocast(dtype: torch.dtype | None) -> None:
    """The gradients of EfficientNet-Lite, and those of the same with torch's own: as near as two roundings are."""
    torch.manual_seed(0)
    plain = build_backbone(BackboneConfig(name="efficientnet_lite0")).to(memory_format=torch.channels_last)
    fast = copy.deepcopy(plain)
    assert use_fast_depthwise(fast) == 11  # 5x5 in nine blocks, 3x3 with a stride in two
    images = channels_last(torch.randn(2, 3, 64, 96))
    for network in (plain, fast):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            features = network(images)
        torch.stack([level.float().square().mean() for level in features]).sum().backward()
    cosines = []
    for ours, theirs in zip(fast.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        assert ours.grad.dtype == torch.float32 and ours.grad.shape == theirs.grad.shape
        if theirs.dim() == 4:
            cosines.append(torch.cosine_similarity(ours.grad.flatten(), theirs.grad.flatten(), dim=0))
    assert torch.stack(cosines).min() > (0.9999 if dtype is None else 0.98)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 8, 5, padding=2),
        nn.Conv2d(8, 16, 5, padding=2, groups=8),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 5, padding=4, dilation=2, groups=8),
        nn.Conv2d(8, 8, 5, padding="same", groups=8),
        nn.Conv2d(8, 8, 5, padding=2, groups=8, padding_mode="reflect"),
        nn.Conv2d(8, 8, 5, stride=3, groups=8),
        nn.Conv2d(8, 8, (3, 5), padding=(1, 2), groups=8),
        nn.Conv2d(8, 8, 4, groups=8),
        nn.Conv2d(1, 1, 5),
    ],
    ids=str,
)
def test_other_convolutions_are_left_alone(conv: nn.Conv2d) -> None:
    before = set(vars(conv))
    assert use_fast_depthwise(nn.Sequential(conv)) == 0
    assert set(vars(conv)) == before


def test_a_copy_and_an_exported_network_compute_the_same() -> None:
    """As the averaged weights are a copy, and `torch.export` traces a network. No parameter has another name."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(8, 8, 5, 2, 2, groups=8, bias=False), nn.ReLU())
    x = channels_last(torch.randn(2, 8, 11, 12))
    expected = network(x)
    use_fast_depthwise(network)
    assert list(network.state_dict()) == ["0.weight"]
    assert torch.equal(copy.deepcopy(network)(x), expected)
    exported = torch.export.export(network, (x,)).module()
    torch.testing.assert_close(exported(x), expected)


COUNT_FAULTS = """
import resource, sys
import torch
from trainer.devices.allocator import freed_memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(12 << 20)  # 48 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
with freed_memory_kept(True):
    faults()
    inside = faults()
print(inside, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is on Linux")
def test_memory_is_kept_for_the_next_step_and_given_back_at_the_end() -> None:
    answer = subprocess.run([sys.executable, "-c", COUNT_FAULTS], capture_output=True, text=True, check=True)
    inside, outside = map(int, answer.stdout.split())
    assert inside < outside / 10  # each 48 MiB are 12,288 pages, or 24 large ones


def test_an_error_passes_through() -> None:
    for wanted in (True, False):
        with pytest.raises(KeyError), freed_memory_kept(wanted):
            raise KeyError


def test_a_detector_in_8_bits_trains_with_them() -> None:
    """`QuantConv2d` gives its rounded weight; what it learns is nearly what it learns without."""
    torch.manual_seed(0)
    config = model_config({
        "classes": ["a"], "input_size_hw": [64, 64], "backbone": {"name": "efficientnet_lite0"},
        "neck": {"channels": 16}, "head": {"depth": 1},
    })  # fmt: skip
    plain = quantize(Detector(config).eval())
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    plain.calibrate([images], "minmax")
    plain.to(memory_format=torch.channels_last)
    fast = copy.deepcopy(plain)
    assert use_fast_depthwise(fast) == 11
    for network in (plain, fast):
        network.train()
        sum(output.square().mean() for output in network(images) if output is not None).backward()
    pairs = [(ours.grad, theirs.grad) for ours, theirs in zip(fast.parameters(), plain.parameters(), strict=True)]
    compared = [(ours, theirs) for ours, theirs in pairs if ours is not None and theirs is not None]
    assert len(compared) == sum(theirs is not None for _, theirs in pairs) > 60
    for ours, theirs in compared:
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))
