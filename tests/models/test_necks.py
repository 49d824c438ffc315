"""Necks: levels, papers' formulas, folding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isodet.strict import ConfigError
from models.config.choices import NECKS
from models.config.model import NeckConfig, model_config
from models.detector import Detector
from models.layers.fuse import FuseError, fuse, fused_difference
from models.layers.necks import BiFPN, ConstantSum, WeightedSum, build_neck
from models.priors import feature_sizes
from tests.models.small import images, small, with_statistics

KINDS = tuple(NECKS)
CHANNELS = (16, 24, 32, 40)


def features(size_hw: tuple[int, int], count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = feature_sizes(size_hw, (2, 5))[:count]
    return [torch.randn(2, c, h, w, generator=generator) for c, (h, w) in zip(CHANNELS, sizes, strict=False)]


def neck(kind: str, c_in: tuple[int, ...] = CHANNELS, **keys: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_neck(NeckConfig(kind=kind, channels=16, **keys), c_in)


@pytest.mark.parametrize("size", [(64, 96), (200, 136)])
@pytest.mark.parametrize("levels", [(2, 5), (2, 7), (3, 5), (3, 7), (4, 6), (5, 7)])
@pytest.mark.parametrize("kind", KINDS)
def test_levels_have_their_strides_and_learn(kind, levels, size):
    """P2 for small objects, and levels of odd size, in every neck."""
    model = neck(kind, levels=levels)
    outputs = model.train()(features(size))
    assert [tuple(o.shape) for o in outputs] == [(2, 16, h, w) for h, w in feature_sizes(size, levels)]
    sum(o.square().sum() for o in outputs).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("norm", ["none", "bn", "gn"])
@pytest.mark.parametrize("kind, depth", [("fpn", 1), ("pafpn", 1), ("bifpn", 1), ("bifpn", 3), ("reppan", 2)])
def test_folded_equals_unfolded(kind, depth, norm):
    model = with_statistics(nn.Sequential(neck(kind, depth=depth, norm=norm)))
    fused = fuse(model)
    given = features((136, 200))
    assert fused_difference(model[0], fused[0], given) <= 1e-4
    assert not any(isinstance(m, (nn.BatchNorm2d, WeightedSum)) for m in fused.modules())
    assert any(isinstance(m, nn.GroupNorm) for m in fused.modules()) == (norm == "gn")
    with pytest.raises(FuseError, match="eval"):
        fuse(model.train())


@pytest.mark.parametrize("p6_from, p7_relu", [("p5", True), ("p5", False), ("c5", True), ("c5", False)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top", [5, 4])
def test_the_levels_above(kind, p6_from, p7_relu, top):
    """Where the next level comes from, and that only P7 has a ReLU before it, also above a dilated backbone."""
    given = features((128, 128), top - 1)
    model = neck(kind, CHANNELS[: top - 1], p6_from=p6_from, p7_relu=p7_relu).eval()
    below, made = [], []
    for extra in model.extra:
        extra.register_forward_pre_hook(lambda _, inputs: below.append(inputs[0]))
        extra.register_forward_hook(lambda _, __, output: made.append(output))
    outputs = model(given)
    if kind != "bifpn":  # which goes on with these levels
        assert all(torch.equal(o, m) for o, m in zip(outputs[-len(made) :], made, strict=True))
        last = outputs[-len(made) - 1]
    else:
        last = model.lateral(given)[-1]
    assert len(below) == 7 - top
    assert torch.equal(below[0], given[-1] if p6_from == "c5" else last)
    assert torch.equal(below[-1], made[-2].relu() if p7_relu else made[-2])
    if top == 4:
        assert torch.equal(below[1], made[0])


def test_pafpn_is_the_papers_formula():
    model, given = neck("pafpn", levels=(2, 5)).eval(), features((64, 96))
    p = model.top_down(given)
    n = [p[0]]
    for i in range(3):  # N_{i+1} = conv(P_{i+1} + conv_stride_2(N_i)), figure 1b; sums before the output convolution
        n.append(p[i + 1] + F.conv2d(n[i], model.downs[i].conv.weight, model.downs[i].conv.bias, 2, 1))
    for output, conv, level in zip(model(given)[1:], model.up_outputs, n[1:], strict=True):
        torch.testing.assert_close(output, conv(level))


def test_bifpn_is_the_papers_formula():
    """Section 3.3's example of level 6: P6_td of P6_in and P7_in, P6_out of P6_in, P6_td and P5_out."""
    model = with_statistics(neck("bifpn"))
    assert isinstance(model, BiFPN)
    inputs = [torch.randn(1, 16, 32 // 2**i, 32 // 2**i) for i in range(5)]  # P3..P7
    one = model.passes[0]
    outputs = one(inputs)

    def weights(module: nn.Module) -> Tensor:
        v = module.weights.clamp(min=0)
        return v / (v.sum() + 1e-4)

    w = weights(one.down_sums[3])
    td6 = one.down_convs[3](F.relu(w[0] * inputs[3] + w[1] * F.interpolate(inputs[4], scale_factor=2)))
    w = weights(one.up_sums[2])
    assert len(w) == 3
    out6 = one.up_convs[2](F.relu(w[0] * inputs[3] + w[1] * td6 + w[2] * F.max_pool2d(outputs[2], 3, 2, 1)))
    torch.testing.assert_close(outputs[3], out6)
    w = weights(one.up_sums[3])
    assert len(w) == 2
    out7 = one.up_convs[3](F.relu(w[0] * inputs[4] + w[1] * F.max_pool2d(outputs[3], 3, 2, 1)))
    torch.testing.assert_close(outputs[4], out7)


def test_a_weighted_sum_folds_to_plain_numbers():
    block = WeightedSum(3)
    block.weights.data = torch.tensor([3.0, -2.0, 1.0])
    fused = block.eval().fuse()
    assert isinstance(fused, ConstantSum) and not list(fused.parameters()) and not list(fused.buffers())
    assert fused.weights == pytest.approx((3 / 4.0001, 0.0, 1 / 4.0001))
    terms = [torch.randn(2, 4, 5, 5) for _ in range(3)]
    torch.testing.assert_close(fused(terms), block(terms))


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_detector(kind):
    model = Detector(small(neck={"kind": kind, "channels": 16, "levels": [2, 6]})).eval()
    assert model(images()).logits.shape[1] == len(model.priors().boxes_xyxy)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"kind": "pan"}, "neck.kind: expected one of fpn, pafpn, bifpn, reppan, got 'pan'"),
        ({"kind": "pafpn", "depth": 2}, "neck.depth: pafpn has one pass"),
        ({"kind": "bifpn", "depth": 0}, "neck.depth: expected 1 to 12"),
        ({"kind": "bifpn", "levels": [5, 5]}, "neck.levels: bifpn exchanges between levels"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(keys, message):
    with pytest.raises(ConfigError, match=message):
        model_config({"classes": ["a"], "neck": keys})
