"""What each choice of optimizer and schedule does to rates and weights, in formulas and in whole runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import trainer.loop
from isodet.strict import ConfigError
from models.checkpoint import read_checkpoint
from models.detector import Detector
from tests.trainer.interrupted import ask_at_step, go_on
from tests.trainer.tiny import TINY, alike, rates, tiny_config, weights
from trainer.config.train import ScheduleConfig, TrainConfig
from trainer.config_reader import read_config
from trainer.devices.distributed import Group
from trainer.loop import Interrupted, fit
from trainer.optim import build_optimizer, learning_rate, lr_factor
from trainer.run.folder import find_resumable
from trainer.state import new_state

PICTURES = (8, 2)
KEYS = ["schedule.epochs=3", "optim.ema=0", "schedule.warmup_steps=0"]


def config(data: Path, *overrides: str) -> TrainConfig:
    return tiny_config(data, *KEYS, *overrides)


@pytest.mark.parametrize(
    ("preset", "epochs", "drops"), [("1x", 12, (8, 11)), ("2x", 24, (16, 22)), ("3x", 36, (27, 33))]
)
def test_presets_drop_where_they_are_published_to(data, preset, epochs, drops):
    base = [text for text in TINY if "schedule" not in text]
    asked = read_config(data / "shapes.yaml", [*base, f"schedule={{preset: {preset}}}"]).schedule
    other = data / f"{preset}.yaml"
    text = (data / "shapes.yaml").read_text()
    other.write_text("\n".join(f"schedule: {{preset: {preset}}}" if "schedule" in t else t for t in text.splitlines()))
    schedule = read_config(other).schedule
    assert asked == schedule  # whatever the recipe says of these keys
    steps = 100
    assert schedule.epochs == epochs and schedule.warmup_steps == 500
    factors = [lr_factor(step, epochs * steps, schedule) for step in range(epochs * steps)]
    falls = [step / steps for step in range(501, len(factors)) if factors[step] < factors[step - 1]]
    assert falls == list(drops)
    assert factors[-1] == pytest.approx(0.01)


def test_the_last_epochs_have_the_rate_of_weight_averaging():
    schedule = ScheduleConfig(epochs=10, warmup_steps=0, swa_epochs=2, swa_lr=0.3, final=0.0)
    factors = [lr_factor(step, 100, schedule) for step in range(100)]
    assert factors[79] == 0 and factors[80:] == [0.3] * 20


def test_the_rate_is_scaled_by_the_images_of_a_step(data):
    settings = config(data, "optim.lr=0.01", "optim.base_batch=16", "optim.accumulate=2", "schedule.kind=constant")
    state = new_state(settings, Detector(settings.model), None, 10, Group())
    assert state.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 4 * 2 / 16)
    assert learning_rate(settings.optim, 4, processes=8) == pytest.approx(0.04)


def test_the_backbone_learns_at_rates_of_its_own_by_stage(data):
    settings = config(data, "optim.kind=sgd", "optim.backbone_lr=0.5", "optim.stage_decay=0.1", "optim.weight_decay=0")
    model = Detector(settings.model)
    optimizer = build_optimizer(model, replace(settings.optim, lr=1.0))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    moved = {name: float((before[name] - p.detach()).mean()) for name, p in model.named_parameters()}
    stages = model.backbone.stem_and_stages()
    names = {id(p): name for name, p in model.named_parameters()}
    for i, stage in enumerate(stages):
        for p in (p for module in stage for p in module.parameters()):
            assert moved.pop(names[id(p)]) == pytest.approx(0.5 * 0.1 ** (4 - i), rel=1e-3)
    assert moved and all(step == pytest.approx(1.0, rel=1e-3) for step in moved.values())
    assert not any(name.startswith("backbone") for name in moved)


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("optim.nesterov=true", r"optim\.nesterov: needs kind: sgd .*nadam is Adam's"),
        ("schedule={swa_epochs: 1, early_stop: 2}", r"schedule\.swa_epochs: .*early_stop"),
        ("schedule.swa_epochs=3", r"schedule\.swa_epochs: expected 0 up to the number of epochs"),
        ("optim={ema: 0.9}", r"schedule\.swa_epochs: optim\.ema averages the weights already"),
        ("schedule.preset=4x", r"schedule\.preset: expected one of 1x, 2x, 3x"),
        ("batch_size=0", r"batch_size: expected auto, or 1 or more"),
    ],
)
def test_what_does_not_fit_together_is_refused(data, override, text):
    overrides = ["schedule.swa_epochs=1", override] if "ema" in override else [override]
    with pytest.raises(ConfigError, match=text):
        config(data, *overrides)


def scripted(monkeypatch: pytest.MonkeyPatch, scores: Sequence[float]) -> None:
    """Validations find `scores`, one after the other."""
    real, left = trainer.loop.evaluate, iter(scores)
    monkeypatch.setattr(trainer.loop, "evaluate", lambda *a: replace(real(*a), map=next(left)))


def test_the_rate_drops_when_map_stands_still(data, tmp_path, monkeypatch):
    scripted(monkeypatch, [1, 2, 2, 1, 3, 3, 3])
    keys = ["schedule.kind=plateau", "schedule.patience=2", "schedule.gamma=0.5", "schedule.epochs=7", "optim.lr=0.008"]
    run = fit(config(data, *keys), tmp_path, quiet=True).run
    assert rates(run) == pytest.approx([0.008] * 4 + [0.004] * 3)
    assert read_checkpoint(run / "last.pt")["resume"]["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.002)


def test_a_run_that_stands_still_ends_early_and_is_finished(data, tmp_path, monkeypatch, capsys):
    scripted(monkeypatch, [1, 2, 1, 2])
    result = fit(config(data, "schedule.early_stop=2", "schedule.epochs=9"), tmp_path)
    assert len(rates(result.run)) == 4 and result.best_map == 2
    assert "no better mAP for 2 validations: the run ends early" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="finished its 4 epochs"):
        find_resumable(result.run)


def test_averaged_weights_are_the_mean_of_the_last_epochs(data, tmp_path, monkeypatch):
    after: list[dict[str, torch.Tensor]] = []
    real = trainer.loop.MetricsLog.end_epoch

    def keeping(self: object, *arguments: object) -> object:
        after.append({k: v.clone() for k, v in states[-1].detector.named_parameters()})
        return real(self, *arguments)

    states = []
    build = trainer.loop.new_state
    monkeypatch.setattr(trainer.loop, "new_state", lambda *a: states.append(build(*a)) or states[-1])
    monkeypatch.setattr(trainer.loop.MetricsLog, "end_epoch", keeping)
    scripted(monkeypatch, [1, 1, 1, 5])
    settings = config(data, "schedule.swa_epochs=2", "schedule.swa_lr=0.5", "optim.lr=0.008")
    result = fit(settings, tmp_path, quiet=True)
    assert result.best_map == 5 and rates(result.run)[-2:] == [0.004, 0.004]
    found, last = weights(result.run / "swa.pt"), weights(result.run / "last.pt")
    for name in after[0]:
        torch.testing.assert_close(found[name], (after[1][name] + after[2][name]) / 2)
        assert torch.equal(last[name], after[2][name])
    best = read_checkpoint(result.best)
    assert best["card"]["metrics"]["averaged"] and all(torch.equal(best["model"][k], found[k]) for k in found)
    statistics = [k for k in found if "running_mean" in k]
    assert statistics and all(not torch.equal(found[k], last[k]) for k in statistics)


RECIPES = {
    "nesterov, averaged": ["optim.kind=sgd", "optim.nesterov=true", "schedule.swa_epochs=2", "optim.lr=0.01"],
    "nadam, plateau": ["optim.kind=nadam", "schedule.kind=plateau", "schedule.patience=1", "optim.backbone_lr=0.5"],
    "adam, ema, stages": ["optim.kind=adam", "optim.ema=0.9", "optim.stage_decay=0.5", "optim.base_batch=2"],
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_schedule_resumes(data, tmp_path, recipe, monkeypatch):
    settings = config(data, *RECIPES[recipe])
    whole = fit(settings, tmp_path / "whole", quiet=True).run
    ask_at_step(5, settings, tmp_path)  # the first of the last epoch
    if settings.schedule.swa_epochs:  # and again, when only the averaged weights are left to judge
        norms = trainer.loop.estimate_norms

        def stopped(*arguments: object) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            norms(*arguments)

        with monkeypatch.context() as patch, pytest.raises(Interrupted, match="while the averaged weights"):
            patch.setattr(trainer.loop, "estimate_norms", stopped)
            go_on(tmp_path)
    run = go_on(tmp_path)
    for name in ("last.pt", "swa.pt") if settings.schedule.swa_epochs else ("last.pt",):
        assert alike(whole, run, name)
    assert rates(whole) == rates(run)
