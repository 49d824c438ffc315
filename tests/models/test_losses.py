"""Losses: finite where a detector can get, the formulas that no other library gives us numbers for, and mining."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from models.config.choices import BOX_LOSSES, CLASS_LOSSES
from models.losses import boxes as losses
from models.losses.boxes import balanced_l1_loss
from models.losses.classification import bce_loss, focal_loss, ghm_weights, hardest, smoothed, varifocal_loss

OVERLAP = [part.load() for part in BOX_LOSSES.values() if part.of == "boxes"]
DISTANCE = [part.load() for part in BOX_LOSSES.values() if part.of == "codes"]
WITHOUT_PULL = (losses.iou_log_loss, losses.iou_linear_loss)
SOFT = [bce_loss, CLASS_LOSSES["qfl"].load(), varifocal_loss]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

corner = st.one_of(st.sampled_from([0.0, 10.0, 1e-3, -40.0, 640.0]), st.floats(-1e8, 1e8, width=32))
side = st.one_of(st.sampled_from([0.0, 10.0, 1e-6, 1e8]), st.floats(0, 1e8, width=32))
boxes = st.tuples(corner, corner, side, side).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])
PAIRS = {
    "identical": ([10, 10, 20, 20], [10, 10, 20, 20]),
    "touching": ([0, 0, 10, 10], [10, 0, 20, 10]),
    "touching in a corner": ([0, 0, 10, 10], [10, 10, 20, 20]),
    "disjoint": ([0, 0, 10, 10], [500, 500, 520, 540]),
    "a point, inside": ([15, 15, 15, 15], [10, 10, 20, 20]),
    "a line": ([10, 15, 20, 15], [10, 10, 20, 20]),
    "the same point": ([10, 10, 10, 10], [10, 10, 10, 10]),
    "huge": ([-1e8, -1e8, 1e8, 1e8], [10, 10, 20, 20]),
    "huge and a point": ([-1e8, -1e8, 1e8, 1e8], [5, 5, 5, 5]),
    "upside down": ([20, 20, 10, 10], [10, 10, 20, 20]),
}


def value_and_gradient(function, pred: list[float], target: list[float], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    pred = torch.tensor([pred], dtype=dtype).clamp(-6e4, 6e4) if dtype == torch.float16 else torch.tensor([pred])
    pred = pred.to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        loss = function(pred, torch.tensor([target], dtype=torch.float32))
    assert loss.dtype == torch.float32
    return loss.detach(), torch.autograd.grad(loss.sum(), pred)[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", OVERLAP)
@pytest.mark.parametrize("name", PAIRS)
def test_overlap_losses_are_finite_for(name, function, dtype):
    loss, gradient = value_and_gradient(function, *PAIRS[name], dtype)
    assert torch.isfinite(loss).all() and torch.isfinite(gradient).all()
    if name == "identical":
        assert abs(float(loss)) < 1e-6


@pytest.mark.parametrize("function", OVERLAP)
@given(pred=boxes, target=boxes)
def test_overlap_losses_are_finite_and_never_negative(function, pred, target):
    loss, gradient = value_and_gradient(function, pred, target, torch.float32)
    assert torch.isfinite(loss).all() and torch.isfinite(gradient).all()
    assert loss >= -1e-5


@pytest.mark.parametrize("function", [function for function in OVERLAP if function not in WITHOUT_PULL])
def test_a_prediction_without_overlap_is_pulled_towards_the_object(function):
    _, gradient = value_and_gradient(function, *PAIRS["disjoint"], torch.float32)
    assert gradient[0, 2] < 0 and gradient[0, 3] < 0  # the sides that face the object move to it


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", DISTANCE)
@given(pred=st.floats(-1e8, 1e8, width=32), target=st.floats(-1e4, 1e4, width=32))
@example(pred=1.0, target=1.0)
def test_distance_losses_are_finite(function, dtype, pred, target):
    loss, gradient = value_and_gradient(function, [pred], [target], dtype)
    assert torch.isfinite(loss).all() and torch.isfinite(gradient).all() and (loss >= 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", [*SOFT, focal_loss])
@given(logit=st.floats(-1e4, 1e4, width=32), target=st.sampled_from([0.0, 1e-6, 0.3, 1.0]))
@example(logit=1e4, target=1.0)
@example(logit=-1e4, target=0.0)
def test_class_losses_are_finite(function, dtype, logit, target):
    loss, gradient = value_and_gradient(function, [logit], [round(target) if function is focal_loss else target], dtype)
    assert torch.isfinite(loss).all() and torch.isfinite(gradient).all() and (loss >= 0).all()


@pytest.mark.parametrize("function", [focal_loss, varifocal_loss])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_a_perfect_score_has_a_gradient_of_zero_for_any_gamma(function, gamma):
    logits = torch.tensor([200.0, -200.0], requires_grad=True)
    function(logits, torch.tensor([1.0, 0.0]), gamma=gamma).sum().backward()
    assert logits.grad.abs().max() < 1e-6


@pytest.mark.parametrize("function", [*OVERLAP, *DISTANCE])
def test_without_positives_a_loss_is_exactly_zero_and_has_a_graph(function):
    codes = torch.zeros(3, 4, requires_grad=True)
    function(codes[:0], torch.zeros(0, 4)).sum().backward()
    assert torch.equal(codes.grad, torch.zeros(3, 4))


@pytest.mark.parametrize(
    "function", [losses.giou_loss, losses.diou_loss, losses.eiou_loss, losses.balanced_l1_loss, varifocal_loss]
)
def test_gradients_are_those_of_the_value(function):
    """Away from corners of the formula, against differences in float64. (CIoU holds its alpha on purpose.)"""
    pred = torch.tensor([[3.2, 4.1, 14.7, 19.9], [0.3, -0.2, 0.6, 0.8]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[1.0, 2.5, 12.0, 22.0], [0.1, 0.0, 0.9, 0.5]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: function(x, target), pred)


def test_alpha_diou_is_its_papers_formula():
    pred, target = torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([[2.0, 0.0, 6.0, 4.0]])
    expected = 1 - (8 / 24) ** 3 + (4 / 52) ** 3  # IoU 8 / 24, centers 2 px apart, the hull's diagonal squared 52
    assert math.isclose(float(losses.alpha_diou_loss(pred, target)), expected, rel_tol=1e-6)
    torch.testing.assert_close(losses.alpha_diou_loss(pred, target, alpha=1.0), losses.diou_loss(pred, target))


@given(st.floats(-8, 8), st.floats(0, 1), st.floats(0.1, 1), st.sampled_from([0.5, 1.0, 2.0]))
def test_varifocal_is_equation_2(logit, q, alpha, gamma):
    p = 1 / (1 + math.exp(-logit))
    expected = -q * (q * math.log(p) + (1 - q) * math.log(1 - p)) if q > 0 else -alpha * p**gamma * math.log(1 - p)
    ours = varifocal_loss(*torch.tensor([logit, q], dtype=torch.float64), alpha, gamma)
    assert math.isclose(float(ours), expected, rel_tol=1e-4, abs_tol=1e-9)


def test_label_smoothing_moves_targets_towards_a_half():
    targets = torch.tensor([[1.0, 0.0]])
    torch.testing.assert_close(smoothed(targets, 0.1), torch.tensor([[0.95, 0.05]]))
    assert torch.equal(smoothed(targets, torch.zeros(1, 1)), targets)


@pytest.mark.parametrize("beta", [1.0, 0.11, 3.0])
def test_the_slope_of_balanced_l1_is_equation_8(beta):
    x = torch.linspace(-3, 3, 601, dtype=torch.float64) * beta + 1e-4
    x.requires_grad_()
    loss = balanced_l1_loss(x, torch.zeros_like(x), beta)
    slope = torch.autograd.grad(loss.sum(), x)[0]
    b = math.expm1(1.5 / 0.5)
    expected = torch.where(x.abs() < beta, 0.5 * torch.log(b * x.abs() / beta + 1), 1.5) * x.sign()
    torch.testing.assert_close(slope, expected.detach())
    assert (loss.diff().abs() <= 1.5 * 0.01 * beta + 1e-9).all()  # no jump: never steeper than gamma
    assert float(balanced_l1_loss(torch.zeros(1), torch.zeros(1), beta)) == 0


@given(st.integers(0, 2**31), st.sampled_from([2, 10, 30]))
def test_ghm_is_the_mean_over_filled_bins_of_their_mean_cross_entropy(seed, bins):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 20, 3, generator=generator)
    targets = (torch.rand(2, 20, 3, generator=generator) < 0.1).float()
    counted = torch.rand(2, 20, 1, generator=generator) < 0.8
    ours = (ghm_weights(logits, targets, counted, bins) * bce_loss(logits, targets)).sum()
    inside: dict[int, list[float]] = {}
    gradient, entropy = (logits.sigmoid() - targets).abs(), bce_loss(logits, targets)
    for index in counted.expand(logits.shape).nonzero().tolist():
        g = float(gradient[tuple(index)])
        inside.setdefault(min(int(torch.tensor(g) * bins), bins - 1), []).append(float(entropy[tuple(index)]))
    expected = sum(sum(values) / len(values) for values in inside.values()) / len(inside)
    torch.testing.assert_close(float(ours), expected, rtol=1e-4, atol=1e-6)


def test_ghm_of_nothing_is_zero():
    logits, counted = torch.zeros(1, 4, 2, requires_grad=True), torch.zeros(1, 4, 1, dtype=torch.bool)
    loss = (ghm_weights(logits, torch.zeros(1, 4, 2), counted) * bce_loss(logits, torch.zeros(1, 4, 2))).sum()
    loss.backward()
    assert loss == 0 and not logits.grad.any()


@given(st.integers(0, 2**31), st.sampled_from([0.5, 1.0, 3.0, 100.0]))
def test_mining_keeps_positives_and_the_hardest_negatives_of_each_image(seed, ratio):
    generator = torch.Generator().manual_seed(seed)
    each = torch.rand(3, 30, generator=generator)
    kind = torch.randint(0, 6, (3, 30), generator=generator)  # 0: positive, 1: ignored, else background
    kind[2] = kind[2].clamp(min=1)  # an image without objects
    keep = hardest(each, kind == 0, kind > 1, ratio)
    for row in range(3):
        background = (kind[row] > 1).nonzero().flatten().tolist()
        wanted = math.ceil(ratio * max(int((kind[row] == 0).sum()), 1))
        worst = sorted(background, key=lambda i: -float(each[row, i]))[:wanted]
        assert set(keep[row].nonzero().flatten().tolist()) == set((kind[row] == 0).nonzero().flatten().tolist() + worst)


def test_equal_losses_are_not_all_kept():
    positive = torch.zeros(1, 8, dtype=torch.bool)
    positive[0, 0] = True
    assert int(hardest(torch.ones(1, 8), positive, ~positive, 3.0).sum()) == 4
