"""Blocks with a simpler form at inference, and the head's blocks and norms: equal when folded, refused in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isodet.strict import ConfigError
from models.detector import Detector
from models.layers.blocks import ConvNorm, DepthwiseConv, ImplicitConv, LevelAffine, LevelNorm, ShuffleConv
from models.layers.fuse import FuseError, assert_fused, fuse
from models.layers.heads import Tower
from models.layers.reparam import QARepVGGBlock, RepConv
from tests.models.small import images, small, with_statistics

BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "RepConv with identity": lambda: RepConv(16, 16),
    "RepConv without identity": lambda: RepConv(16, 16, identity=False),
    "RepConv, other width": lambda: RepConv(16, 24),
    "RepConv, stride 2": lambda: RepConv(16, 16, stride=2),
    "QARepVGG with identity": lambda: QARepVGGBlock(16, 16),
    "QARepVGG, other width": lambda: QARepVGGBlock(16, 24),
    "QARepVGG, stride 2": lambda: QARepVGGBlock(16, 16, stride=2),
    "convolution": lambda: ConvNorm(16, 24, 3),
    "convolution with bias": lambda: ConvNorm(16, 24, 3, bias=True),
    "depthwise": lambda: DepthwiseConv(16, 24),
    "shuffle": lambda: ShuffleConv(16, 24),
    "implicit": lambda: ImplicitConv(16, 24, 3, padding=1),
    "implicit 1x1": lambda: ImplicitConv(16, 24, 1),
}


def x(height: int = 13, width: int = 18) -> Tensor:
    return torch.randn(2, 16, height, width, generator=torch.Generator().manual_seed(1)) * 2 + 0.5


@pytest.mark.parametrize("name", BLOCKS)
def test_folded_equals_unfolded(name):
    torch.manual_seed(0)
    model = with_statistics(nn.Sequential(BLOCKS[name]()))
    fused = fuse(model)
    assert_fused(model, fused, x())
    assert not any(isinstance(m, (nn.BatchNorm2d, ImplicitConv)) for m in fused.modules())
    convolutions = [m for m in fused.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == (2 if name == "depthwise" else 1)
    assert sum(conv.bias is not None for conv in convolutions) == 1


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_in_training_learns_and_is_not_folded(name):
    block = BLOCKS[name]().train()
    block(x()).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in block.parameters())
    with pytest.raises(FuseError, match="eval"):
        block.fuse()
    with pytest.raises(FuseError, match="eval"):
        fuse(nn.Sequential(block))


def test_a_fold_keeps_the_precision_and_the_training_form():
    block = with_statistics(RepConv(16, 16)).double()
    before = {k: v.clone() for k, v in block.state_dict().items()}
    fused = fuse(nn.Sequential(block).eval())
    assert all(p.dtype == torch.float64 for p in fused.parameters())
    torch.testing.assert_close(fused(x().double()), block(x().double()), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(v, before[k]) for k, v in block.state_dict().items())


def test_qarepvgg_has_the_order_of_the_paper():
    """Chu et al., figure 4 (S4): a BatchNorm on the 3x3 branch only, and one behind the sum."""
    block = with_statistics(QARepVGGBlock(16, 16))
    y = block.bn3(F.conv2d(x(), block.conv3.weight, padding=1)) + F.conv2d(x(), block.conv1.weight) + x()
    torch.testing.assert_close(block(x()), F.relu(block.bn(y)))
    assert sum(isinstance(m, nn.BatchNorm2d) for m in block.modules()) == 2


def test_implicit_knowledge_is_a_sum_before_and_a_product_behind():
    block = with_statistics(ImplicitConv(16, 24, 3, padding=1))
    padded = F.pad(x(), [1, 1, 1, 1]) + block.implicit_add[:, None, None]  # the padding has it too
    expected = F.conv2d(padded, block.weight, block.bias) * block.implicit_mul[:, None, None]
    torch.testing.assert_close(block(x()), expected, rtol=1e-5, atol=1e-5)


def test_a_shuffle_lets_every_group_see_every_other():
    """One input channel reaches, after two blocks, outputs of all groups; without a shuffle it stays in its own."""
    torch.manual_seed(0)
    first, second = (ShuffleConv(16, 16, norm="none").eval() for _ in range(2))
    for block in (first, second):
        block.act = nn.Identity()
    base, poked = torch.zeros(1, 16, 5, 5), torch.zeros(1, 16, 5, 5)
    poked[:, 0] = 1
    reached = (second(first(base)) - second(first(poked))).abs().amax(dim=(0, 2, 3)) > 1e-6
    plain = (second.conv(first.conv(base)) - second.conv(first.conv(poked))).abs().amax(dim=(0, 2, 3)) > 1e-6
    assert reached.all() and plain.sum() == 4


def test_sepbn_has_statistics_of_its_own_for_each_level_and_one_convolution():
    torch.manual_seed(0)
    block = ConvNorm(16, 24, 3, norm="sepbn", levels=3).train()
    for level in range(3):
        block(x() * 4**level, level)
    variances = torch.stack([norm.running_var for norm in block.norm.norms])
    assert (variances[1] > 1.2 * variances[0]).all() and (variances[2] > 2 * variances[1]).all()
    assert sum(isinstance(m, nn.Conv2d) for m in block.modules()) == 1

    with_statistics(block)
    fused = fuse(nn.Sequential(block).eval())[0]
    assert isinstance(fused.norm, LevelAffine) and not any(isinstance(m, LevelNorm) for m in fused.modules())
    for level in range(3):
        before = block(x(), level)
        assert float((fused(x(), level) - before).detach().abs().max() / before.detach().abs().max()) <= 1e-4
    assert not torch.allclose(block(x(), 0), block(x(), 1))


def detector(head: dict[str, Any]) -> Detector:
    torch.manual_seed(0)
    return Detector(small(head={"depth": 2, **head}))


HEADS: list[dict[str, Any]] = [
    {"norm": "sepbn"}, {"norm": "sepbn", "block": "dw"}, {"norm": "sepbn", "block": "shuffle", "channels": 24},
    {"norm": "bn"}, {"norm": "bn", "block": "dw"}, {"norm": "bn", "block": "shuffle"},
    {"norm": "bn", "block": "repconv"}, {"norm": "gn", "block": "dw"}, {"norm": "none", "block": "shuffle"},
    {"norm": "gn", "implicit": True}, {"norm": "sepbn", "block": "dw", "implicit": True, "conv_bias": True},
]  # fmt: skip


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_heads_fold_and_learn(head):
    model = detector(head).train()
    raw = model(images())
    sum(part.square().sum() for part in raw).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.head.parameters())
    with_statistics(model)
    fused = fuse(model)
    assert_fused(model, fused, images())
    left = {type(m) for m in fused.head.modules()}
    assert not left & {nn.BatchNorm2d, LevelNorm, ImplicitConv, RepConv}
    assert (nn.GroupNorm in left) == (head["norm"] == "gn")


def test_light_blocks_are_light():
    def cost(**head: Any) -> int:
        model = detector({"channels": 64, "norm": "bn", **head})
        return sum(p.numel() for tower in (model.head.cls_tower, model.head.box_tower) for p in tower.parameters())

    full = cost()
    assert cost(block="dw") < full / 5 and cost(block="shuffle") < full / 3


def test_the_towers_names_in_checkpoints_stay():
    """What was written before there was a choice of blocks loads."""
    written = {"cls_tower.0.conv.weight", "cls_tower.1.norm.bias", "box_tower.0.conv.weight", "cls.bias", "scales"}
    assert written <= set(detector({"norm": "gn"}).head.state_dict())
    assert isinstance(detector({}).head.cls_tower, Tower)


@pytest.mark.parametrize(
    "head, message",
    [
        ({"block": "repconv"}, "head.block: repconv brings a BatchNorm on each branch; set norm: bn"),
        ({"block": "shuffle", "channels": 18}, "head.block: shuffle has four groups"),
        ({"block": "conv3"}, "head.block: expected one of conv, dw, shuffle, repconv, got 'conv3'"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(head, message):
    with pytest.raises(ConfigError, match=message):
        detector(head)
