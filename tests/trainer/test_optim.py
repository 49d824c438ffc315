"""Schedules and accumulation as tables; decay and averaging on small modules."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trainer.averaging import build_average
from trainer.config import OptimConfig, ScheduleConfig
from trainer.optim import build_optimizer, group_size, lr_factor, steps_per_epoch


@pytest.mark.parametrize(("batches", "accumulate", "steps"), [(1, 1, 1), (10, 1, 10), (10, 3, 4), (9, 3, 3), (2, 8, 1)])
def test_steps(batches: int, accumulate: int, steps: int) -> None:
    assert steps_per_epoch(batches, accumulate) == steps


@given(st.integers(1, 60), st.integers(1, 9))
def test_every_batch_has_its_share_of_exactly_one_step(batches: int, accumulate: int) -> None:
    sizes = [group_size(i, batches, accumulate) for i in range(batches)]
    assert sum(1 / s for s in sizes) == pytest.approx(steps_per_epoch(batches, accumulate))


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (99, 0.01)],
)
def test_cosine_with_warmup(step: int, factor: float) -> None:
    assert lr_factor(step, 100, ScheduleConfig(warmup_steps=10)) == pytest.approx(factor)


def test_cosine_is_halfway_in_the_middle() -> None:
    config = ScheduleConfig(warmup_steps=0, final=0.0)
    assert lr_factor(50, 101, config) == pytest.approx(0.5)


@pytest.mark.parametrize(("step", "factor"), [(0, 1), (65, 1), (67, 0.1), (91, 0.1), (92, 0.01), (99, 0.01)])
def test_steps_of_the_published_1x_schedule(step: int, factor: float) -> None:
    assert lr_factor(step, 100, ScheduleConfig(kind="step", warmup_steps=0)) == pytest.approx(factor)


@given(st.integers(1, 500), st.integers(0, 1000), st.sampled_from(["cosine", "step", "constant"]))
def test_the_rate_is_positive_and_never_above_the_base(total: int, warmup: int, kind: str) -> None:
    config = ScheduleConfig(kind=kind, warmup_steps=warmup)  # type: ignore[arg-type]
    factors = [lr_factor(step, total, config) for step in range(total)]
    assert all(0 < f <= 1 for f in factors)
    assert factors[min(warmup, total // 10)] == 1  # a warm-up longer than the run cannot swallow it


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_norms_and_biases_do_not_decay(kind: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    optimizer = build_optimizer(model, OptimConfig(kind=kind, lr=0.1, weight_decay=0.5))  # type: ignore[arg-type]
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    decayed = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert decayed == [True, False, False, False]


def test_the_average_follows_its_formula_with_the_ramp() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.register_buffer("count", torch.tensor(0))
    average = build_average(model, decay=0.5)
    assert average is not None
    expected = float("nan")
    for n, value in enumerate([1.0, 3.0, -2.0, 8.0]):
        model.weight.data.fill_(value)
        model.count += 1  # type: ignore[operator]
        average.update_parameters(model)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = value if n == 0 else decay * expected + (1 - decay) * value
    assert float(average.module.weight.detach()) == pytest.approx(expected)
    assert int(average.module.count) == 4  # type: ignore[arg-type]
    assert not math.isnan(expected)


def test_no_average_for_a_decay_of_zero() -> None:
    assert build_average(nn.Linear(1, 1), 0.0) is None
