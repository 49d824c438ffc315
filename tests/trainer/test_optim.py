"""Schedules and accumulation as tables; optimizers, decay and averaging on small modules, in formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trainer.config.train import OptimConfig, ScheduleConfig
from trainer.data.train_set import Batch
from trainer.extras.averaging import Averages, estimate_norms, exponential_average
from trainer.optim import build_optimizer, group_size, lr_factor, steps_per_epoch


@pytest.mark.parametrize(("batches", "accumulate", "steps"), [(1, 1, 1), (10, 1, 10), (10, 3, 4), (9, 3, 3), (2, 8, 1)])
def test_steps(batches, accumulate, steps):
    assert steps_per_epoch(batches, accumulate) == steps


@given(st.integers(1, 60), st.integers(1, 9))
def test_every_batch_has_its_share_of_exactly_one_step(batches, accumulate):
    sizes = [group_size(i, batches, accumulate) for i in range(batches)]
    assert sum(1 / s for s in sizes) == pytest.approx(steps_per_epoch(batches, accumulate))


@pytest.mark.parametrize(("step", "factor"), [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (99, 0.01)])
def test_cosine_with_warmup(step, factor):
    assert lr_factor(step, 100, ScheduleConfig(warmup_steps=10)) == pytest.approx(factor)


def test_cosine_is_halfway_in_the_middle():
    config = ScheduleConfig(warmup_steps=0, final=0.0)
    assert lr_factor(50, 101, config) == pytest.approx(0.5)


@pytest.mark.parametrize(("step", "factor"), [(0, 1), (65, 1), (67, 0.1), (91, 0.1), (92, 0.01), (99, 0.01)])
def test_steps_of_the_published_1x_schedule(step, factor):
    assert lr_factor(step, 100, ScheduleConfig(kind="step", warmup_steps=0)) == pytest.approx(factor)


@given(st.integers(1, 500), st.integers(0, 1000), st.sampled_from(["cosine", "step", "constant"]))
def test_the_rate_is_positive_and_never_above_the_base(total, warmup, kind):
    config = ScheduleConfig(kind=kind, warmup_steps=warmup)
    factors = [lr_factor(step, total, config) for step in range(total)]
    assert all(0 < f <= 1 for f in factors)
    assert factors[min(warmup, total // 10)] == 1  # a warm-up longer than the run cannot swallow it


LR, DECAY, MOMENTUM, B1, B2, EPS = 0.1, 0.2, 0.9, 0.9, 0.999, 1e-8
GRADIENTS = (0.5, -1.5, 2.0)


def nesterov(w: float) -> float:
    v = 0.0
    for gradient in GRADIENTS:
        g = gradient + DECAY * w
        v = MOMENTUM * v + g
        w -= LR * (g + MOMENTUM * v)
    return w


def adam(w: float, decoupled: bool) -> float:
    m = v = 0.0
    for t, gradient in enumerate(GRADIENTS, start=1):
        if decoupled:
            w -= LR * DECAY * w
        g = gradient if decoupled else gradient + DECAY * w
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g * g
        w -= LR * (m / (1 - B1**t)) / (math.sqrt(v / (1 - B2**t)) + EPS)
    return w


def nadam(w: float) -> float:
    """Dozat, "Incorporating Nesterov Momentum into Adam" (2016), with its schedule of momenta (psi = 0.004)."""
    m, v, product = 0.0, 0.0, 1.0
    for t, gradient in enumerate(GRADIENTS, start=1):
        g = gradient + DECAY * w
        mu, following = (B1 * (1 - 0.5 * 0.96 ** (0.004 * s)) for s in (t, t + 1))
        product *= mu
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g * g
        step = (1 - mu) * g / (1 - product) + following * m / (1 - product * following)
        w -= LR * step / (math.sqrt(v / (1 - B2**t)) + EPS)
    return w


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"kind": "sgd", "nesterov": True}, nesterov(3.0)),
        ({"kind": "adam"}, adam(3.0, decoupled=False)),
        ({"kind": "adamw"}, adam(3.0, decoupled=True)),
        ({"kind": "nadam"}, nadam(3.0)),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_optimizers_follow_their_papers(keys, expected):
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(3.0)
    optimizer = build_optimizer(layer, OptimConfig(lr=LR, weight_decay=DECAY, momentum=MOMENTUM, **keys))
    for gradient in GRADIENTS:
        layer.weight.grad = torch.full_like(layer.weight, gradient)
        optimizer.step()
    assert float(layer.weight.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_norms_and_biases_do_not_decay(kind):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    optimizer = build_optimizer(model, OptimConfig(kind=kind, lr=0.1, weight_decay=0.5))
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    decayed = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert decayed == [True, False, False, False]


def test_the_average_follows_its_formula_with_the_ramp():
    model = nn.Linear(1, 1, bias=False)
    model.register_buffer("count", torch.tensor(0))
    average = exponential_average(model, decay=0.5)
    expected = float("nan")
    for n, value in enumerate([1.0, 3.0, -2.0, 8.0]):
        model.weight.data.fill_(value)
        model.count += 1
        average.update_parameters(model)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = value if n == 0 else decay * expected + (1 - decay) * value
    assert float(average.module.weight.detach()) == pytest.approx(expected)
    assert int(average.module.count) == 4
    assert not math.isnan(expected)


def test_without_averages_what_learns_is_deployed():
    model = nn.Linear(1, 1)
    averages = Averages.of(model, 0.0, 0)
    assert averages.deployed is model and averages.parts() == {}
    assert Averages.of(model, 0.5, 0).parts().keys() == {"average"}


def test_averaged_norms_have_the_plain_mean_of_all_batches_and_frozen_ones_their_own():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.learned, self.frozen = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def train(self, mode: bool = True) -> Net:
            super().train(mode)
            self.frozen.eval()
            return self

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x = images.permute(0, 3, 1, 2).float()
            return self.learned(x) + self.frozen(x)

    torch.manual_seed(0)
    nothing = torch.zeros(0)
    pictures = [torch.randint(0, 256, (n, 4, 4, 3), dtype=torch.uint8) for n in (2, 0, 3, 2)]
    model = Net()
    model.learned.running_mean.fill_(99)
    model.frozen.running_mean.fill_(7)
    batches = [Batch(p, nothing, nothing, nothing, ()) for p in pictures]
    estimate_norms(model, batches, torch.device("cpu"), None, lambda done: None)
    used = [p.float().reshape(-1, 3) for p in pictures if len(p)]
    torch.testing.assert_close(model.learned.running_mean, torch.stack([p.mean(0) for p in used]).mean(0))
    torch.testing.assert_close(model.learned.running_var, torch.stack([p.var(0) for p in used]).mean(0))
    assert model.frozen.running_mean.tolist() == [7, 7, 7]
    assert model.learned.momentum == 0.1 and not model.training
