"""bfloat16 and float16: the network computes in them, assignment and losses do not, and float16 has its scaler."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import models.loss
import trainer.loop
from models.detector import Detector
from tests.trainer.tiny import tiny_config
from trainer.config.train import TrainConfig
from trainer.data.train_set import Batch
from trainer.devices.distributed import Group
from trainer.loop import TrainingError, fit
from trainer.state import State, new_state, seed_everything
from trainer.step import LEAST_SCALE, optimizer_step
from trainer.training_model import total_loss

CPU = torch.device("cpu")
PICTURES = (10, 2)


@pytest.fixture(scope="module")
def config(data: Path) -> TrainConfig:
    return tiny_config(data, "schedule.epochs=1", "batch_size=2", "optim.ema=0", "schedule.warmup_steps=0")


def started(config: TrainConfig, amp: torch.dtype | None = None) -> tuple[State, Batch]:
    seed_everything(0)
    state = new_state(config, Detector(config.model), amp, 100, Group())
    batch = Batch(
        torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8),
        torch.tensor([[[8.0, 8, 40, 40]], [[0.0, 9, 60, 50]]]),
        torch.tensor([[1], [0]]), [1, 2], torch.tensor([[64, 64]] * 2),
    )  # fmt: skip
    state.model.train()
    return state, batch


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16])
def test_the_network_computes_in_half_and_all_that_is_learned_from_in_float32(config, amp, monkeypatch):
    state, batch = started(config, amp)
    inside, assigned, real = set(), [], models.loss.assign
    for module in state.model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _, given, answer: inside.add(answer.dtype))

    def watched(rule: object, priors: object, boxes: torch.Tensor, *others: object) -> torch.Tensor:
        assigned.append((priors.boxes_xyxy.dtype, boxes.dtype, torch.is_autocast_enabled("cpu")))
        return real(rule, priors, boxes, *others)

    monkeypatch.setattr(models.loss, "assign", watched)
    terms = state.model(batch)
    assert amp in inside and assigned == [(torch.float32, torch.float32, False)]
    assert {term.dtype for term in terms.values()} == {torch.float32}
    total_loss(terms).backward()
    assert {p.grad.dtype for p in state.model.parameters() if p.grad is not None} == {torch.float32}
    plain = started(config)[0].model(batch)
    torch.testing.assert_close(total_loss(terms), total_loss(plain), rtol=0.05, atol=0)


def scaled(state: State) -> torch.amp.GradScaler:
    """`state` with the scaler that it has on a GPU under float16: torch runs it on a CPU just as well."""
    state.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=True)
    return state.scaler


def test_scaled_gradients_take_the_step_that_plain_ones_do(config):
    ends = []
    for scaling in (False, True):
        state, batch = started(config)
        if scaling:
            scaled(state)
        state.scaler.scale(total_loss(state.model(batch))).backward()
        assert optimizer_step(state)
        ends.append(torch.cat([p.detach().flatten() for p in state.model.parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-6)


def test_an_overflow_costs_the_step_and_halves_the_scale(config):
    state, batch = started(config)
    scaler, before = scaled(state), [p.detach().clone() for p in state.model.parameters()]
    scaler.scale(total_loss(state.model(batch)) * float("inf")).backward()
    assert optimizer_step(state)  # everyday's: nobody is told
    assert all(torch.equal(a, b) for a, b in zip(before, state.model.parameters(), strict=True))
    assert scaler.get_scale() == 512


def test_a_step_that_is_left_out_does_not_stop_the_next(config):
    """With `on_nan: skip`, where the scale cannot be the reason any more."""
    state, batch = started(config)
    scaler = state.scaler = torch.amp.GradScaler("cpu", init_scale=LEAST_SCALE / 2)
    for factor, usable in ((float("inf"), False), (1.0, True)):
        scaler.scale(total_loss(state.model(batch)) * factor).backward()
        assert optimizer_step(state) is usable


def test_gradients_that_never_recover_end_the_run_with_the_images_named(config, tmp_path, monkeypatch):
    """Else the scaler would answer each with half the scale, and a run of hours would have learned nothing."""

    def unscaled(self: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.fill_(float("nan"))
        unscale(self, optimizer)

    unscale = torch.amp.GradScaler.unscale_
    monkeypatch.setattr(torch.amp.GradScaler, "unscale_", unscaled)
    begin = trainer.loop.new_state

    def starting(*arguments: object) -> State:
        state = begin(*arguments)
        state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-12, enabled=True)
        return state

    monkeypatch.setattr(trainer.loop, "new_state", starting)
    with pytest.raises(TrainingError, match=r"the gradient is not finite in epoch 1 .* on images \[\d+, \d+\]"):
        fit(config, tmp_path, quiet=True)
