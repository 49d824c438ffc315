"""What each choice of optimiser and schedule does to rates and weights, in formulas and in whole runs."""

from __future__ import annotations

import csv
import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import trainer.loop
from models.checkpoint import read_checkpoint
from models.detector import Detector
from models.typed import ConfigError
from trainer.averaging import estimate_norms
from trainer.config import OptimConfig, ScheduleConfig, TrainConfig, read_config
from trainer.data import Batch
from trainer.distributed import Group
from trainer.loop import Interrupted, TrainingError, fit
from trainer.lr_find import range_test
from trainer.memory import Probe, largest_batch
from trainer.optim import build_optimizer, learning_rate, lr_factor
from trainer.precision import deterministic
from trainer.recipes.shapes import make_shapes
from trainer.runs import find_resumable
from trainer.state import compiled, new_state

TINY = ["schedule.epochs=3", "batch_size=4", "model.input_size_hw=[64,64]", "model.backbone.width=0.125", "optim.ema=0",
        "model.neck.channels=16", "amp=off", "val_interval=1", "schedule.warmup_steps=0"]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schedules") / "data"
    make_shapes(folder, train_images=8, val_images=2, size_hw=(64, 64))
    return folder


def config(data: Path, *overrides: str) -> TrainConfig:
    return read_config(data / "shapes.yaml", [*TINY, *overrides])


def rates(run: Path) -> list[float]:
    return [float(row["lr"]) for row in csv.DictReader((run / "metrics.csv").open())]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(path)["model"]  # type: ignore[no-any-return]


# ---------------------------------------------------------------------------------------------
# formulas

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
def test_optimisers_follow_their_papers(keys: dict[str, object], expected: float) -> None:
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(3.0)
    optimizer = build_optimizer(layer, OptimConfig(lr=LR, weight_decay=DECAY, momentum=MOMENTUM, **keys))  # type: ignore[arg-type]
    for gradient in GRADIENTS:
        layer.weight.grad = torch.full_like(layer.weight, gradient)
        optimizer.step()
    assert float(layer.weight.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("preset", "epochs", "drops"), [("1x", 12, (8, 11)), ("2x", 24, (16, 22)), ("3x", 36, (27, 33))]
)
def test_presets_drop_where_they_are_published_to(data: Path, preset: str, epochs: int, drops: tuple[int, int]) -> None:
    base = [text for text in TINY if "schedule" not in text]
    schedule = read_config(data / "shapes.yaml", [*base, f"schedule={{preset: {preset}}}"]).schedule
    # What the recipe gives itself stays on top: here its own 16 epochs of cosine.
    assert (schedule.epochs, schedule.kind) == (16, "cosine")
    other = data / f"{preset}.yaml"
    text = (data / "shapes.yaml").read_text()
    other.write_text("\n".join(f"schedule: {{preset: {preset}}}" if "schedule" in t else t for t in text.splitlines()))
    schedule = read_config(other).schedule
    steps = 100
    assert schedule.epochs == epochs and schedule.warmup_steps == 500
    factors = [lr_factor(step, epochs * steps, schedule) for step in range(epochs * steps)]
    falls = [step / steps for step in range(501, len(factors)) if factors[step] < factors[step - 1]]
    assert falls == list(drops)
    assert factors[-1] == pytest.approx(0.01)


def test_the_last_epochs_have_the_rate_of_weight_averaging() -> None:
    schedule = ScheduleConfig(epochs=10, warmup_steps=0, swa_epochs=2, swa_lr=0.3, final=0.0)
    factors = [lr_factor(step, 100, schedule) for step in range(100)]
    assert factors[79] == 0 and factors[80:] == [0.3] * 20


def test_the_rate_is_scaled_by_the_images_of_a_step(data: Path) -> None:
    settings = config(data, "optim.lr=0.01", "optim.base_batch=16", "optim.accumulate=2", "schedule.kind=constant")
    state = new_state(settings, Detector(settings.model), None, 10, Group())
    assert state.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 4 * 2 / 16)
    assert learning_rate(settings.optim, 4, processes=8) == pytest.approx(0.04)


def test_the_backbone_learns_at_rates_of_its_own_by_stage(data: Path) -> None:
    settings = config(data, "optim.kind=sgd", "optim.backbone_lr=0.5", "optim.stage_decay=0.1", "optim.weight_decay=0")
    model = Detector(settings.model)
    optimizer = build_optimizer(model, replace(settings.optim, lr=1.0))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    moved = {name: float((before[name] - p.detach()).mean()) for name, p in model.named_parameters()}
    stages = model.backbone.stem_and_stages()  # type: ignore[operator]
    names = {id(p): name for name, p in model.named_parameters()}
    for i, stage in enumerate(stages):
        for p in (p for module in stage for p in module.parameters()):
            assert moved.pop(names[id(p)]) == pytest.approx(0.5 * 0.1 ** (4 - i), rel=1e-3)
    assert moved and all(step == pytest.approx(1.0, rel=1e-3) for step in moved.values())
    assert not any(name.startswith("backbone") for name in moved)


def test_averaged_norms_have_the_plain_mean_of_all_batches_and_frozen_ones_their_own() -> None:
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
            return self.learned(x) + self.frozen(x)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    nothing = torch.zeros(0)
    pictures = [torch.randint(0, 256, (n, 4, 4, 3), dtype=torch.uint8) for n in (2, 0, 3, 2)]
    model = Net()
    model.learned.running_mean.fill_(99)  # type: ignore[union-attr]
    model.frozen.running_mean.fill_(7)  # type: ignore[union-attr]
    batches = [Batch(p, nothing, nothing, nothing, ()) for p in pictures]
    estimate_norms(model, batches, torch.device("cpu"), None, lambda done: None)
    used = [p.float().reshape(-1, 3) for p in pictures if len(p)]
    torch.testing.assert_close(model.learned.running_mean, torch.stack([p.mean(0) for p in used]).mean(0))
    torch.testing.assert_close(model.learned.running_var, torch.stack([p.var(0) for p in used]).mean(0))
    assert model.frozen.running_mean.tolist() == [7, 7, 7]  # type: ignore[union-attr]
    assert model.learned.momentum == 0.1 and not model.training


def test_the_range_test_finds_where_a_parabola_diverges() -> None:
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
        range_test(_sequence([1.0, 1.0, math.inf]), [1, 2, 3, 4])


def _sequence(values: Sequence[float]) -> Callable[[float], float]:
    left: Iterator[float] = iter(values)
    return lambda rate: next(left)


def test_the_automatic_batch_fits_the_memory(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def limited(size: int) -> int:
        if size > 8:
            raise torch.OutOfMemoryError
        return 10 * size

    assert largest_batch(limited, 10**6, 64, tried=True) == 8
    assert largest_batch(limited, 45, 64, tried=True) == 4
    assert largest_batch(lambda n: 100 + 10 * n, 250, 64, tried=False) == 8
    assert largest_batch(lambda n: 100 + 10 * n, 50, 64, tried=False) == 1
    assert largest_batch(lambda n: n, 10**6, 6, tried=False) == 4
    probe = Probe(config(data), torch.device("cpu"), None, objects=3)
    one, two, four = (probe.cpu_bytes(n) for n in (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one), rel=0.02) and two > one  # the line that the rule rests on
    monkeypatch.setattr("trainer.memory.available_memory", lambda: 2 * (one + 2 * (two - one)))
    run = fit(config(data, "batch_size=auto", "schedule.epochs=1"), tmp_path, quiet=True).run
    assert read_config(run / "config.yaml").batch_size == 2


def test_deterministic_holds_within_the_run_only(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it holds, torch fills memory that would have anything in it, here with NaN."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seen = []
    real = trainer.loop.train_epoch

    def looking(*arguments: object) -> None:
        seen.append(bool(torch.empty(1000).isnan().all()))
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer.loop, "train_epoch", looking)
    fit(config(data, "deterministic=true", "schedule.epochs=1"), tmp_path, quiet=True)
    assert seen == [True]
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()


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
def test_what_does_not_fit_together_is_refused(data: Path, override: str, text: str) -> None:
    overrides = ["schedule.swa_epochs=1", override] if "ema" in override else [override]
    with pytest.raises(ConfigError, match=text):
        config(data, *overrides)


# ---------------------------------------------------------------------------------------------
# whole runs


def scripted(monkeypatch: pytest.MonkeyPatch, scores: Sequence[float]) -> None:
    """Validations find `scores`, one after the other."""
    real, left = trainer.loop.evaluate, iter(scores)
    monkeypatch.setattr(trainer.loop, "evaluate", lambda *a: replace(real(*a), map=next(left)))


def test_the_rate_drops_when_map_stands_still(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [1, 2, 2, 1, 3, 3, 3])
    keys = ["schedule.kind=plateau", "schedule.patience=2", "schedule.gamma=0.5", "schedule.epochs=7", "optim.lr=0.008"]
    run = fit(config(data, *keys), tmp_path, quiet=True).run
    assert rates(run) == pytest.approx([0.008] * 4 + [0.004] * 3)
    assert read_checkpoint(run / "last.pt")["resume"]["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.002)


def test_a_run_that_stands_still_ends_early_and_is_finished(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted(monkeypatch, [1, 2, 1, 2])
    result = fit(config(data, "schedule.early_stop=2", "schedule.epochs=9"), tmp_path)
    assert len(rates(result.run)) == 4 and result.best_map == 2
    assert "no better mAP for 2 validations: the run ends early" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="finished its 4 epochs"):
        find_resumable(result.run)


def test_averaged_weights_are_the_mean_of_the_last_epochs(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after: list[dict[str, torch.Tensor]] = []
    real = trainer.loop.Records.end_epoch

    def keeping(self: object, *arguments: object) -> object:
        after.append({k: v.clone() for k, v in states[-1].model.named_parameters()})
        return real(self, *arguments)  # type: ignore[arg-type]

    states = []
    build = trainer.loop.new_state
    monkeypatch.setattr(trainer.loop, "new_state", lambda *a: states.append(build(*a)) or states[-1])
    monkeypatch.setattr(trainer.loop.Records, "end_epoch", keeping)
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
def test_every_schedule_resumes(data: Path, tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(data, *RECIPES[recipe])
    whole = fit(settings, tmp_path / "whole", quiet=True).run
    real, calls = trainer.loop.Records.step, []

    def step(self: object) -> None:
        real(self)  # type: ignore[arg-type]
        calls.append(1)
        if len(calls) == 5:  # the first step of the last epoch
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(trainer.loop.Records, "step", step)
        fit(settings, tmp_path, quiet=True)
    if settings.schedule.swa_epochs:  # and again, when only the averaged weights are left to judge
        norms = trainer.loop.estimate_norms

        def stopped(*arguments: object) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            norms(*arguments)  # type: ignore[arg-type]

        with monkeypatch.context() as patch, pytest.raises(Interrupted, match="while the averaged weights"):
            patch.setattr(trainer.loop, "estimate_norms", stopped)
            resume = find_resumable(None, tmp_path)
            fit(resume.config, tmp_path, resume, quiet=True)
    resume = find_resumable(None, tmp_path)
    run = fit(resume.config, tmp_path, resume, quiet=True).run
    for name in ("last.pt", "swa.pt") if settings.schedule.swa_epochs else ("last.pt",):
        one, other = weights(whole / name), weights(run / name)
        assert all(torch.equal(one[k], other[k]) for k in one)
    assert rates(whole) == rates(run)


def test_lr_find_draws_a_picture_and_leaves_no_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from trainer.__main__ import main

    monkeypatch.chdir(tmp_path)
    assert main(["lr-find", str(data / "shapes.yaml"), *TINY, "--steps", "30", "--high", "30", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["lr-find.png"]
    assert "loss falls fastest at" in said and "optim.lr=" in said
    assert main(["lr-find", str(data / "shapes.yaml"), "--steps", "3"]) == 1
    assert "10 steps" in capsys.readouterr().err


def test_a_compiled_network_learns_what_the_plain_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the tracing of forward and backward; code for the machine takes minutes to make on a busy CPU."""
    real, made = torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda m: made.append(m) or real(m, backend="aot_eager"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(3, 5)
    model(x).square().sum().backward()
    plain = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    found = compiled(model)(x)
    assert made == [model]
    found.square().sum().backward()  # type: ignore[attr-defined]
    for expected, p in zip(plain, model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, expected)


def test_a_compiler_that_fails_is_an_error_with_advice(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(graph: object, inputs: object) -> object:
        raise RuntimeError("no such compiler: cc")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: real(model, backend=broken))
    with pytest.raises(TrainingError, match=r"compile: torch.compile cannot work here; set compile=false\..*cc"):
        fit(config(data, "compile=true"), tmp_path, quiet=True)
