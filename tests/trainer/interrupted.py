"""Runs that end early, each as one cause ends them, and their going on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import trainer.loop
from trainer.config.train import TrainConfig
from trainer.loop import Interrupted, fit
from trainer.run.folder import find_resumable


def stop_before_epoch(number: int, settings: TrainConfig, runs: Path) -> None:
    """Train until epoch `number` (from 1) would begin, where an exception ends the run."""
    real, begun = trainer.loop.train_epoch, []

    def stopped(*arguments: object) -> None:
        begun.append(1)
        if len(begun) == number:
            raise KeyboardInterrupt
        real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.loop, "train_epoch", stopped)
        with pytest.raises(KeyboardInterrupt):
            fit(settings, runs, quiet=True)


def ask_at_end_of_epoch(number: int, settings: TrainConfig, runs: Path) -> None:
    """Train with a SIGTERM that comes while the run writes down its epoch `number` (from 1)."""
    real = trainer.loop.MetricsLog.end_epoch

    def ending(self: object, *arguments: object) -> object:
        row = real(self, *arguments)
        if row["epoch"] == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return row

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(trainer.loop.MetricsLog, "end_epoch", ending)
        fit(settings, runs, quiet=True)


def ask_at_step(number: int, settings: TrainConfig, runs: Path) -> None:
    """Train with a SIGTERM that comes with the optimizer's step `number` (from 1) of all epochs."""
    real, steps = trainer.loop.MetricsLog.step, []

    def step(self: object) -> None:
        real(self)
        steps.append(1)
        if len(steps) == number:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(trainer.loop.MetricsLog, "step", step)
        fit(settings, runs, quiet=True)


def go_on(runs: Path) -> Path:
    """Resume the newest run below `runs` as it was configured, and train it to its end; returns its folder."""
    resume = find_resumable(None, runs)
    return fit(resume.config, runs, resume, quiet=True).run
