"""What goes wrong within a run is left out where that is allowed, or ends it with the cause, and what is left."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest
import torch

import trainer.data.cache
import trainer.step
from models.checkpoint import CheckpointError, read_checkpoint, save_checkpoint
from tests.trainer.tiny import tiny_config
from trainer.config.train import TrainConfig
from trainer.data.train_set import Batch
from trainer.loop import TrainingError, fit
from trainer.training_model import TrainingModel

PICTURES = (14, 3)


def config(data: Path, *overrides: str) -> TrainConfig:
    """7 batches and 4 steps an epoch, each of which is saved."""
    return tiny_config(data, "batch_size=2", "optim.accumulate=2", "checkpoint_steps=1", *overrides)


def test_a_full_disk_names_file_and_room_and_leaves_the_old_file(data, tmp_path):
    """The limit on a file's size cuts the write off in the middle, as a full disk does."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"w": torch.zeros(10)}, {"first": 1})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        told = r"last\.pt: cannot write this checkpoint: File too large, after 0\.\d MiB .*alone are 3\.8 MiB; "
        with pytest.raises(CheckpointError, match=told + r"\d.* MiB were free then.*before is unchanged"):
            save_checkpoint(path, {"w": torch.zeros(1_000_000)}, {})
        run = tmp_path / "shapes"
        with pytest.raises(CheckpointError, match=rf"{run}/(last|best)\.pt: cannot write.* nothing is left"):
            fit(config(data), tmp_path, quiet=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert not [*tmp_path.glob(".*"), *run.glob(".*")]


def test_losses_that_are_not_finite_are_left_out_up_to_the_limit(data, tmp_path, monkeypatch, capsys):
    real, calls, bad = TrainingModel.forward, [], {2, 5}

    def poisoned(self: TrainingModel, batch: Batch) -> dict[str, torch.Tensor]:
        calls.append(1)
        if len(calls) in bad:
            for module in self.detector.modules():  # what activations without bound leave behind
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.running_mean.fill_(float("nan"))
        terms = real(self, batch)
        return terms | {"cls": terms["cls"] * float("nan")} if len(calls) in bad else terms

    monkeypatch.setattr(TrainingModel, "forward", poisoned)
    skip = ["optim.on_nan=skip", "optim.nan_limit=2", "schedule.epochs=1"]
    run = fit(config(data, *skip), tmp_path).run
    said = capsys.readouterr().err
    assert "left out number 2 (at most 2): the loss is not finite in epoch 1 on images [" in said
    content = read_checkpoint(run / "last.pt")
    assert content["resume"]["skipped"] == 2
    assert all(torch.isfinite(v).all() for v in content["resume"]["model"].values())
    assert content["resume"]["records"]["images"] == 14 - 2 * 2
    calls.clear()
    with pytest.raises(TrainingError, match=r"2 batches were left out, more than optim.nan_limit; .* on images \["):
        fit(config(data, "optim.on_nan=skip", "optim.nan_limit=1"), tmp_path, quiet=True)
    calls.clear()
    bad.remove(2)
    with pytest.raises(TrainingError, match=r"not finite .*the last good checkpoint, .*last\.pt, holds epoch 1 after "
                       r"batch 4\. .*optim.on_nan=skip"):  # fmt: skip
        fit(config(data), tmp_path, quiet=True)


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(data, tmp_path, monkeypatch):
    real = trainer.step.clip_gradients
    seen: list[dict[str, torch.Tensor]] = []

    def poisoned(model: torch.nn.Module, largest: float) -> torch.Tensor:
        seen.append({k: v.clone() for k, v in model.named_parameters()})
        if len(seen) == 2:
            next(p for p in model.parameters() if p.grad is not None).grad.fill_(float("inf"))
        return real(model, largest)

    monkeypatch.setattr(trainer.step, "clip_gradients", poisoned)
    fit(config(data, "optim.on_nan=skip", "schedule.epochs=1"), tmp_path, quiet=True)
    first, second, third = seen[:3]
    assert any(not torch.equal(first[k], second[k]) for k in first)
    assert all(torch.equal(second[k], third[k]) for k in first)
    seen.clear()
    with pytest.raises(TrainingError, match=r"the gradient is not finite in epoch 1 .* on images \[(\d+, ){3}\d+\]"):
        fit(config(data), tmp_path, quiet=True)


def test_a_loader_process_killed_by_the_system_is_named_with_advice(data, tmp_path, monkeypatch):
    real, parent = trainer.data.cache.read_image, os.getpid()

    def killed(path: Path) -> object:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(path)

    monkeypatch.setattr(trainer.data.cache, "read_image", killed)
    with pytest.raises(TrainingError, match=r"a data loading process died: .*killed.*lower data\.workers or batch_size"
                       r".*no checkpoint was written"):  # fmt: skip
        fit(config(data, "data.workers=1"), tmp_path, quiet=True)
