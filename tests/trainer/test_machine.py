"""What a training makes of its machine: devices, number formats, memory, repeatability, the compiler."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import trainer.loop
from isodet.strict import ConfigError
from runtime.backends.torch.compiling import compiled
from tests.trainer.tiny import tiny_config
from trainer.config_reader import read_config
from trainer.devices.memory import Probe, largest_batch
from trainer.devices.precision import deterministic, pick_amp, pick_device, worker_count
from trainer.loop import TrainingError, fit

PICTURES = (8, 2)


def test_devices_and_precision():
    cpu = torch.device("cpu")
    assert pick_device("cpu") == cpu
    assert pick_amp("off", cpu) is None and pick_amp("bf16", cpu) == torch.bfloat16
    assert worker_count("auto", cpu) == 0 and worker_count(3, cpu) == 3
    with pytest.raises(ConfigError, match="fp16 training needs a GPU"):
        pick_amp("fp16", cpu)
    with pytest.raises(ConfigError, match="expected auto, cpu, cuda or cuda:N, got 'gpu'"):
        pick_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="torch sees no GPU here"):
            pick_device("cuda")


def test_the_automatic_batch_fits_the_memory(data, tmp_path, monkeypatch):
    def limited(size: int) -> int:
        if size > 8:
            raise torch.OutOfMemoryError
        return 10 * size

    assert largest_batch(limited, 10**6, 64, tried=True) == 8
    assert largest_batch(limited, 45, 64, tried=True) == 4
    assert largest_batch(lambda n: 100 + 10 * n, 250, 64, tried=False) == 8
    assert largest_batch(lambda n: 100 + 10 * n, 50, 64, tried=False) == 1
    assert largest_batch(lambda n: n, 10**6, 6, tried=False) == 4
    probe = Probe(tiny_config(data), torch.device("cpu"), None, objects=3)
    one, two, four = (probe.cpu_bytes(n) for n in (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one), rel=0.02) and two > one  # the line that the rule rests on
    monkeypatch.setattr("trainer.devices.memory.available_memory", lambda: 2 * (one + 2 * (two - one)))
    run = fit(tiny_config(data, "batch_size=auto", "schedule.epochs=1"), tmp_path, quiet=True).run
    assert read_config(run / "config.yaml").batch_size == 2
    monkeypatch.setattr("trainer.devices.memory.available_memory", lambda: None)
    with pytest.raises(ConfigError, match="batch_size: auto: this system does not say how much memory is free"):
        fit(tiny_config(data, "batch_size=auto"), tmp_path, quiet=True)


def test_deterministic_holds_within_the_run_only(data, tmp_path, monkeypatch):
    """While it holds, torch fills memory that would have anything in it, here with NaN."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seen = []
    real = trainer.loop.train_epoch

    def looking(*arguments: object) -> None:
        seen.append(bool(torch.empty(1000).isnan().all()))
        real(*arguments)

    monkeypatch.setattr(trainer.loop, "train_epoch", looking)
    fit(tiny_config(data, "deterministic=true", "schedule.epochs=1"), tmp_path, quiet=True)
    assert seen == [True]
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()


def test_a_compiled_network_learns_what_the_plain_one_does(monkeypatch):
    """Through the tracing of forward and backward; code for the machine takes minutes to make on a busy CPU."""
    real, made = torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda m: made.append(m) or real(m, backend="aot_eager"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(3, 5)
    model(x).square().sum().backward()
    plain = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    found = compiled(model, RuntimeError)(x)
    assert made == [model]
    found.square().sum().backward()
    for expected, p in zip(plain, model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, expected)


def test_a_compiler_that_fails_is_an_error_with_advice(data, tmp_path, monkeypatch):
    def broken(graph: object, inputs: object) -> object:
        raise RuntimeError("no such compiler: cc")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: real(model, backend=broken))
    with pytest.raises(TrainingError, match=r"compile: torch.compile cannot work here; set compile=false\..*cc"):
        fit(tiny_config(data, "compile=true"), tmp_path, quiet=True)
