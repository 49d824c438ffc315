"""The range test for learning rates, on a parabola and as the command."""

from __future__ import annotations

import math

import pytest

from tests.trainer.tiny import TINY
from trainer.__main__ import main
from trainer.loop import TrainingError
from trainer.lr_find import range_test

PICTURES = (8, 2)


def test_the_range_test_finds_where_a_parabola_diverges():
    """Gradient descent on k x^2 / 2 diverges at rates above 2 / k, and is fastest at 1 / k. Noise keeps x from 0."""
    x, k = 1.0, 4.0

    def step(rate: float) -> float:
        nonlocal x
        loss = k * x * x / 2 + 1
        x = max(abs(x - rate * k * x), 0.05)
        return loss

    found = range_test(step, [1e-4 * 1.1**n for n in range(120)])
    assert found.diverged is not None and 2 / k < found.diverged < 2.5 * 2 / k
    assert 0.01 / k < found.steepest < 1 / k
    assert found.suggestion == min(found.steepest, found.diverged / 10)
    assert len(found.rates) == len(found.losses)
    with pytest.raises(TrainingError, match=r"diverged at step 3 .*start lower with --low"):
        losses = iter([1.0, 1.0, math.inf])
        range_test(lambda rate: next(losses), [1, 2, 3, 4])


def test_lr_find_draws_a_picture_and_leaves_no_run(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["lr-find", str(data / "shapes.yaml"), *TINY, "--steps", "30", "--high", "30", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["lr-find.png"]
    assert "loss falls fastest at" in said and "optim.lr=" in said
    assert main(["lr-find", str(data / "shapes.yaml"), "--steps", "3"]) == 1
    assert "10 steps" in capsys.readouterr().err
