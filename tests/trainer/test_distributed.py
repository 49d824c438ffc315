"""Two gloo processes on the CPU learn what one process learns from batches of twice the size."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from isodet.strict import ConfigError
from models.checkpoint import read_checkpoint
from tests.trainer.processes import fit_in_two, two
from tests.trainer.tiny import CUT_ALIKE, TINY, tiny_config
from trainer.__main__ import main
from trainer.config.train import TrainConfig
from trainer.data.loader import BatchOrder
from trainer.devices.distributed import Group, check_parallel
from trainer.log.metrics import read_metrics
from trainer.loop import fit
from trainer.run.folder import find_resumable
from trainer.training_model import TrainingModel

PICTURES = (12, 3)
KEYS = [*CUT_ALIKE, "batch_size=2", "model.backbone.width=0.25", "optim.ema=0.9", "optim.accumulate=2"]


def config(data: Path, *overrides: str) -> TrainConfig:
    return tiny_config(data, *KEYS, *overrides)


def command(data: Path, runs: Path, *overrides: str) -> list[str]:
    """`config` and the training of it, as arguments of the command."""
    return ["fit", str(data / "shapes.yaml"), *TINY, *KEYS, *overrides, "--runs", str(runs), "--quiet"]


def numbers(run: Path) -> list[list[float]]:
    columns = ("step", "lr", "loss", "loss_cls", "loss_box", "loss_quality")
    return [[row[column] for column in columns] for row in read_metrics(run / "metrics.csv")]


@pytest.fixture(scope="module")
def single(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(config(data, "batch_size=4"), tmp_path_factory.mktemp("single"), quiet=True).run


def assert_same_training(run: Path, single: Path) -> None:
    assert numbers(run) == [pytest.approx(row, rel=1e-3) for row in numbers(single)]
    one, other = (read_checkpoint(r / "last.pt") for r in (run, single))
    for name, value in one["model"].items():
        torch.testing.assert_close(value, other["model"][name], rtol=1e-3, atol=1e-4)
    # Three pictures over two processes: each is judged once.
    assert one["card"]["metrics"]["images"] == 3
    assert one["card"]["metrics"]["map"] == pytest.approx(other["card"]["metrics"]["map"], abs=0.5)


def test_two_processes_learn_what_one_learns_and_one_writes(data, tmp_path, single):
    run = fit_in_two(config(data), tmp_path / "runs")
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert_same_training(run, single)


def test_a_process_without_a_usable_picture_takes_part(own, tmp_path):
    """Batches of one picture each, one of which is broken: the other process's picture counts alone."""
    sorted((own / "train").glob("*.jpg"))[5].write_bytes(b"not a picture")
    keys = ["schedule.epochs=1", "model.detector=fcos"]
    single = fit(config(own, *keys, "batch_size=2"), tmp_path / "single", quiet=True).run
    assert_same_training(fit_in_two(config(own, *keys, "batch_size=1"), tmp_path / "two"), single)


def test_a_process_that_dies_ends_the_run_which_then_resumes(data, tmp_path, single):
    def dying(rank: int) -> object:
        real, calls = TrainingModel.forward, []

        def forward(*arguments: object) -> object:
            calls.append(1)
            if rank == 1 and len(calls) == 6:  # in the second epoch, two batches after a save
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)

        TrainingModel.forward = forward
        return main(command(data, tmp_path, "checkpoint_steps=1"))

    assert two(dying, tmp_path / "err") == [1, -signal.SIGKILL]
    said = (tmp_path / "err").read_text()
    assert "another process of this training died" in said and "holds " in said and "--resume" in said
    resume = find_resumable(None, tmp_path)
    assert resume.state["epoch"] == 1 and len(resume.state["process_rng"]) == 2
    assert two(lambda rank: main(["fit", "--resume", "--runs", str(tmp_path), "--quiet"]), tmp_path / "err") == [0, 0]
    assert_same_training(tmp_path / "shapes", single)


def test_a_signal_to_one_process_stops_all_at_the_same_step(data, tmp_path):
    def asked(rank: int) -> object:
        real = TrainingModel.forward

        def forward(*arguments: object) -> object:
            if rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
                TrainingModel.forward = real
            return real(*arguments)

        TrainingModel.forward = forward
        return main(command(data, tmp_path))

    assert two(asked, tmp_path / "err") == [1, 1]
    assert (tmp_path / "err").read_text().count("in epoch 1, after batch 2; all of it is saved") == 2
    assert find_resumable(None, tmp_path).state["batch"] == 2


def test_processes_share_every_batch_without_overlap():
    for length, batch, size in ((12, 2, 2), (13, 2, 3), (3, 4, 2), (1, 2, 2)):
        order = torch.utils.data.SequentialSampler(range(length))
        parts = [list(BatchOrder(order, batch, Group(rank, size))) for rank in range(size)]
        alone = list(BatchOrder(order, batch * size, Group()))
        assert [sorted(i for part in step for i in part) for step in zip(*parts, strict=True)] == alone
        assert len(BatchOrder(order, batch, Group(0, size))) == len(alone)


def test_synchronized_norms_are_refused_on_cpus(data):
    settings = config(data, "model.backbone.norm=sync")
    check_parallel(settings, Group(), torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"model\.backbone\.norm: sync needs GPUs"):
        check_parallel(settings, Group(0, 2), torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"device: 'cuda:1' is one GPU for 2 processes"):
        check_parallel(config(data, "device=cuda:1"), Group(0, 2), torch.device("cuda:1"))
