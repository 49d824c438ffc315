"""The learning rate range test (Smith, "Cyclical Learning Rates for Training Neural Networks", 2015, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np

from runtime.files.figure import new_figure, save_figure
from trainer.config.train import TrainConfig
from trainer.data.datasets import train_data
from trainer.data.loader import Batches, training_batches
from trainer.data.tiles import in_tiles
from trainer.data.train_set import Batch, TrainSet, resize_rule
from trainer.devices.distributed import Group
from trainer.devices.precision import deterministic, pick_amp, pick_device
from trainer.failures import TrainingError, dead_processes
from trainer.log.metrics import as_floats
from trainer.optim import learning_rate
from trainer.state import new_state, seed_everything, starting_model
from trainer.step import clip_gradients
from trainer.training_model import total_loss

SMOOTHING = 0.9
"""Weight of the past in the smoothed loss."""
DIVERGED = 4.0
"""The test ends where the smoothed loss is this many times its smallest value."""


@dataclass(frozen=True)
class RangeTest:
    rates: tuple[float, ...]
    """Learning rates tried, rising by a constant factor."""
    losses: tuple[float, ...]
    """The smoothed loss at each rate."""
    steepest: float
    """The rate where the smoothed loss falls fastest over the logarithm of the rate, by lines through a fifth of it."""
    diverged: float | None
    """The rate where the loss reached `DIVERGED` times its smallest value, or was not finite; None if it did not."""

    @property
    def suggestion(self) -> float:
        """`steepest`, or a tenth of `diverged` where that is lower."""
        return self.steepest if self.diverged is None else min(self.steepest, self.diverged / 10)


def range_test(step: Callable[[float], float], rates: Sequence[float]) -> RangeTest:
    """Train with `step(rate) -> loss` at rising `rates` until the loss diverges. Raises `TrainingError` where it
    does so before there are enough points to see a slope."""
    mean, diverged = 0.0, None
    smooth: list[float] = []
    for n, rate in enumerate(rates, start=1):
        loss = step(rate)
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        value = mean / (1 - SMOOTHING**n)
        if not math.isfinite(value) or (smooth and value > DIVERGED * min(smooth)):
            diverged = rate
            break
        smooth.append(value)
    if len(smooth) < 5:
        raise TrainingError(
            f"the loss diverged at step {len(smooth) + 1} of the range test, at a rate of "
            f"{rates[len(smooth)]:.3g}; start lower with --low"
        )
    # Straight lines through a fifth of the points each: the slope between neighbors is mostly noise.
    half = max(len(smooth) // 10, 1)
    x, y = np.log(np.array(rates[: len(smooth)])), np.array(smooth)
    middles = range(half, len(smooth) - half)
    slopes = [np.polyfit(x[i - half : i + half + 1], y[i - half : i + half + 1], 1)[0] for i in middles]
    steepest = rates[half + int(np.argmin(slopes))]
    return RangeTest(tuple(rates[: len(smooth)]), tuple(smooth), steepest, diverged)


def find_lr(
    config: TrainConfig,
    low: float = 1e-6,
    high: float = 1.0,
    steps: int = 100,
    progress: Callable[[int, int], None] | None = None,
) -> RangeTest:
    """The range test of a training as `config` describes it, from `low` to `high` in `steps` optimizer steps.

    Its rates are values of `optim.lr`, before `optim.base_batch` scales them. Nothing is written. Raises what `fit`
    raises, and `TrainingError` where the loss has no slope to see.
    """
    if not 0 < low < high or steps < 10:
        raise TrainingError(f"the range test needs 0 < low < high and 10 steps, got {low:g}, {high:g} and {steps}")
    device = pick_device(config.device)
    amp = pick_amp(config.amp, device)
    seed_everything(config.seed)
    config = replace(config, compile=False)
    train_set = TrainSet(in_tiles(train_data(config), config), resize_rule(config.model), config.augment, config.seed)
    batches = training_batches(config, train_set, device, Group())
    model, _ = starting_model(config, resumed=False)
    state = new_state(config, model.to(device), amp, steps, Group())
    state.model.train()
    scale = learning_rate(config.optim, config.images_per_batch) / config.optim.lr
    groups = [(group, group["lr"] / (config.optim.lr * scale)) for group in state.optimizer.param_groups]
    endless = _endless(batches)
    done = count(1)

    def step(rate: float) -> float:
        for group, factor in groups:
            group["lr"] = rate * scale * factor
        total = 0.0
        for _ in range(config.optim.accumulate):
            losses = state.forward(next(endless).to(device))
            state.scaler.scale(total_loss(losses) / config.optim.accumulate).backward()
            total += sum(as_floats(losses.values())) / config.optim.accumulate
        state.scaler.unscale_(state.optimizer)
        clip_gradients(state.model, config.optim.clip_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        if progress is not None:
            progress(next(done), steps)
        return total

    with deterministic(config.deterministic), dead_processes(lambda: ""):
        return range_test(step, np.geomspace(low, high, steps).tolist())


def _endless(batches: Batches) -> Iterator[Batch]:
    """Batches of one epoch after the other, without empty ones."""
    for epoch in count():
        usable = 0
        for batch in batches.begin(epoch):
            if len(batch.images):
                usable += 1
                yield batch
        if usable == 0:
            raise TrainingError("not one training picture could be used; `trainer check-data` lists them")


def plot_range_test(result: RangeTest, path: Path) -> Path:
    """Draw loss over rate as a PNG, with the suggestion; returns the path."""
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    axes.plot(result.rates, result.losses, label="smoothed training loss")
    axes.axvline(result.steepest, color="tab:green", linestyle=":", label=f"steepest: {result.steepest:.2g}")
    if result.diverged is not None:
        axes.axvline(result.diverged, color="tab:red", linestyle=":", label=f"diverged: {result.diverged:.2g}")
    axes.axvline(result.suggestion, color="black", linewidth=1, label=f"suggestion: {result.suggestion:.2g}")
    axes.set(xscale="log", xlabel="optim.lr", title="learning rate range test")
    low, first = min(result.losses), result.losses[0]
    axes.set_ylim(low - 0.1 * (first - low), first + 0.5 * (first - low) + 1e-9)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return save_figure(figure, path)
