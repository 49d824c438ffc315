"""Killed, asked to stop, out of disk, other data: a run that goes on ends as if nothing had happened."""

from __future__ import annotations

import csv
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import trainer.loop
from models.checkpoint import CheckpointError, read_checkpoint, save_checkpoint
from models.detector import Detector
from models.typed import ConfigError
from runtime.card import sha256_file
from trainer.__main__ import main
from trainer.config import TrainConfig, read_config
from trainer.distributed import Group
from trainer.loop import Interrupted, TrainingError, fit
from trainer.recipes.shapes import make_shapes
from trainer.runs import find_resumable
from trainer.state import State, new_state, seed_everything

# 7 batches and 4 steps an epoch, the last of one batch; averaged weights come with the recipe.
TINY = ["schedule.epochs=2", "batch_size=2", "optim.accumulate=2", "model.input_size_hw=[64,64]", "amp=off",
        "model.backbone.width=0.125", "model.neck.channels=16", "val_interval=1", "checkpoint_steps=1"]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume") / "data"
    make_shapes(folder, train_images=14, val_images=3, size_hw=(64, 64))
    return folder


def config(data: Path, *overrides: str) -> TrainConfig:
    return read_config(data / "shapes.yaml", [*TINY, *overrides])


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupted."""
    return fit(config(data), tmp_path_factory.mktemp("whole"), quiet=True).run


def child(work: Callable[[], object], err: Path) -> int:
    """Run `work` in a process of its own, whose stderr goes to the file `err`; returns its id."""
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            with err.open("a") as file:
                os.dup2(file.fileno(), 2)
                sys.stderr = file
                status = int(work() or 0)
                file.flush()
        finally:
            os._exit(status)
    return pid


def ended(pid: int) -> int:
    """Exit status of a child, negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def start_or_resume(settings: TrainConfig, runs: Path) -> object:
    for last in runs.glob("*/last.pt"):
        if read_checkpoint(last)["resume"]["finished"]:
            return 0  # the blow before fell between the last save and the end of the process
        resume = find_resumable(None, runs)
        return 0 if fit(resume.config, runs, resume, quiet=True) else 1
    shutil.rmtree(runs, ignore_errors=True)
    return 0 if fit(settings, runs, quiet=True) else 1


def flat(value: object, at: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        return {k: v for key, below in value.items() for k, v in flat(below, f"{at}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, below in enumerate(value) for k, v in flat(below, f"{at}/{i}").items()}
    return {at: value}


def assert_same_end(run: Path, whole: Path) -> None:
    """Weights, averages, optimiser, schedule, scores, random numbers and the numbers that were written down."""
    one, other = (flat(read_checkpoint(r / "last.pt")["resume"]) for r in (run, whole))
    assert one.keys() == other.keys()
    for key, value in one.items():
        if "seconds" not in key:
            same = torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]  # type: ignore[arg-type]
            assert same, key
    one_rows, other_rows = ([*csv.DictReader((r / "metrics.csv").open())] for r in (run, whole))
    for row in (*one_rows, *other_rows):
        del row["seconds"], row["images_per_s"], row["data_wait"]
    assert one_rows == other_rows


def board(run: Path, tag: str) -> list[int]:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars(tag)]


def test_killed_at_random_moments_a_run_ends_as_one_never_killed(data: Path, tmp_path: Path, whole: Path) -> None:
    settings, runs, draw = config(data), tmp_path / "runs", random.Random(0)
    kills = within = 0
    longest, status = 0.6, -1
    while status != 0 or kills < 3 or within < 1:
        if status == 0:  # a machine so fast that it came to the end before enough blows: again, with earlier ones
            shutil.rmtree(runs)
            kills, within, longest = 0, 0, longest / 4
        blow = time.monotonic() + draw.uniform(longest / 3, longest)
        pid = child(lambda: start_or_resume(settings, runs), tmp_path / "err")
        time.sleep(max(0.0, blow - time.monotonic()))
        os.kill(pid, signal.SIGKILL)
        status = ended(pid)  # 0 where it came to its end before the blow
        assert status in (0, -signal.SIGKILL), (tmp_path / "err").read_text()
        kills += status != 0
        for last in runs.glob("*/last.pt"):
            within += read_checkpoint(last)["resume"]["batch"] > 0
        longest += 0.25  # however slow the machine, an end is reached
    assert_same_end(runs / "shapes", whole)
    assert board(runs / "shapes", "train/loss") == board(whole, "train/loss") == [4, 8]
    assert not list((runs / "shapes").glob(".*"))


def test_killed_while_writing_the_old_file_stays(
    data: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> object:
        real, left = os.fsync, [3]

        def killing(file: int) -> None:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            real(file)

        monkeypatch.setattr(os, "fsync", killing)
        return fit(config(data), tmp_path, quiet=True) and 0

    assert ended(child(work, tmp_path / "err")) == -signal.SIGKILL, (tmp_path / "err").read_text()
    run = tmp_path / "shapes"
    assert len(list(run.glob(".last.pt.*.partial"))) == 1
    resume = find_resumable(None, tmp_path)
    assert (resume.state["epoch"], resume.state["batch"]) == (0, 4)
    fit(resume.config, tmp_path, resume, quiet=True)
    assert_same_end(run, whole)
    assert not list(run.glob(".*.partial"))


def test_a_signal_finishes_the_step_saves_and_names_the_command(
    data: Path, tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> object:
        real = trainer.loop.train_epoch

        def signalled(*arguments: object) -> None:
            *others, after_step, saved = arguments
            state = others[1]

            def asked() -> None:
                if state.epoch == 1 and state.batch == 2:  # type: ignore[attr-defined]
                    os.kill(os.getpid(), signal.SIGTERM)
                after_step()  # type: ignore[operator]

            real(*others, asked, saved)  # type: ignore[arg-type]

        trainer.loop.train_epoch = signalled
        runs = str(tmp_path / "runs")
        return main(["fit", str(data / "shapes.yaml"), *TINY, "checkpoint_steps=0", "--runs", runs, "--quiet"])

    assert ended(child(work, tmp_path / "err")) == 1
    run = tmp_path / "runs" / "shapes"
    said = (tmp_path / "err").read_text()
    assert "stopped by SIGTERM in epoch 2, after batch 2" in said and "Traceback" not in said
    assert f"trainer fit --resume {run}\n" in said
    assert main(["fit", "--resume", str(run), "--quiet"]) == 0
    assert f"resuming {run}: epoch 2 of 2, after batch 2" in capsys.readouterr().out
    settings = read_checkpoint(run / "last.pt")["card"]["training"]
    assert settings["checkpoint_steps"] == 0
    assert_same_end(run, whole)


def test_a_signal_during_validation_does_not_wait_and_the_second_leaves_at_once(
    data: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trainer.loop.evaluate

    def signalled(*arguments: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer.loop, "evaluate", signalled)
    with pytest.raises(Interrupted, match="in epoch 1, after batch 7; all of it is saved"):
        fit(config(data, "checkpoint_steps=0"), tmp_path, quiet=True)
    monkeypatch.setattr(trainer.loop, "evaluate", real)
    resume = find_resumable(None, tmp_path)
    assert resume.state["batch"] == 7
    run = fit(resume.config, tmp_path, resume, quiet=True).run
    assert_same_end(run, whole)

    def twice(*arguments: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("still here")

    monkeypatch.setattr(trainer.loop, "evaluate", twice)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as stop:
        fit(config(data, "checkpoint_steps=0"), tmp_path / "other", quiet=True)
    assert not isinstance(stop.value, Interrupted)
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(ConfigError, match="nothing to resume"):
        find_resumable(None, tmp_path / "other")


def test_minutes_are_counted(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []
    monkeypatch.setattr(
        "trainer.runs.save_checkpoint", lambda path, *_: saved.append(path.name) if path.name == "last.pt" else None
    )
    fit(config(data, "checkpoint_steps=0", "schedule.epochs=1"), tmp_path, quiet=True)
    assert len(saved) == 1  # ten minutes are longer than this run
    fit(config(data, "checkpoint_steps=0", "schedule.epochs=1", "checkpoint_minutes=1e-9"), tmp_path, quiet=True)
    assert len(saved) == 1 + 4 + 1


def test_a_run_saved_by_an_older_version_goes_on(data: Path, tmp_path: Path, whole: Path) -> None:
    """It knew ends of epochs only, and fewer keys."""
    with pytest.raises(Interrupted):
        _stopped_after(1, config(data, "checkpoint_steps=0"), tmp_path)
    last = tmp_path / "shapes" / "last.pt"
    content = read_checkpoint(last)
    old = {k: content["resume"][k] for k in ("model", "average", "optimizer", "schedule", "scaler", "epoch",
                                             "best_map", "rng")}  # fmt: skip
    card = content["card"]
    for key in ("checkpoint_minutes", "checkpoint_steps"):
        del card["training"][key]
    save_checkpoint(last, content["model"], card, old)
    resume = find_resumable(None, tmp_path)
    fit(resume.config, tmp_path, resume, quiet=True)
    assert_same_end(tmp_path / "shapes", whole)


def _stopped_after(epochs: int, settings: TrainConfig, runs: Path) -> None:
    """A run that is asked to stop while it writes down its epoch number `epochs`."""
    real = trainer.loop.Records.end_epoch

    def ending(self: object, *arguments: object) -> object:
        row = real(self, *arguments)  # type: ignore[arg-type]
        if row["epoch"] == epochs:
            os.kill(os.getpid(), signal.SIGTERM)
        return row

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.loop.Records, "end_epoch", ending)
        fit(settings, runs, quiet=True)


def test_a_full_disk_names_file_and_room_and_leaves_the_old_file(data: Path, tmp_path: Path) -> None:
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


def test_annotations_that_changed_are_refused_with_both_hashes_or_accepted_when_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, runs = tmp_path / "data", tmp_path / "runs"
    shutil.copytree(data, copy)
    resume = None
    with pytest.raises(Interrupted):
        _stopped_in_the_second_epoch(config(copy), runs)
    file = copy / "train.json"
    old = sha256_file(file)
    coco = json.loads(file.read_text())
    coco["images"] = coco["images"][:8]
    kept = {image["id"] for image in coco["images"]}
    coco["annotations"] = [a for a in coco["annotations"] if a["image_id"] in kept]
    file.write_text(json.dumps(coco))
    resume = find_resumable(None, runs)
    with pytest.raises(ConfigError, match=rf"train\.json: .*is {sha256_file(file)}, it was {old};.*--changed-data"):
        fit(resume.config, runs, resume, quiet=True)
    assert main(["fit", "--resume", "--runs", str(runs), "--changed-data"]) == 0
    assert "the annotations changed since the checkpoint: epoch 2 starts again" in capsys.readouterr().err
    assert read_checkpoint(runs / "shapes" / "last.pt")["card"]["hashes"]["train_annotations"] == sha256_file(file)


def test_annotations_that_change_under_a_run_do_not_change_it(data: Path, tmp_path: Path) -> None:
    copy, real = tmp_path / "data", trainer.loop.Records.step
    shutil.copytree(data, copy)
    file = copy / "train.json"
    old = sha256_file(file)

    def step(self: object) -> None:
        file.write_text("no JSON any more")
        real(self)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.loop.Records, "step", step)
        run = fit(config(copy, "schedule.epochs=1"), tmp_path, quiet=True).run
    content = read_checkpoint(run / "last.pt")
    assert content["resume"]["records"]["images"] == 14  # every picture, as they were read at the start
    assert content["card"]["hashes"]["train_annotations"] == old != sha256_file(file)


def _stopped_in_the_second_epoch(settings: TrainConfig, runs: Path) -> None:
    real = trainer.loop.Records.step

    def step(self: object) -> None:
        real(self)  # type: ignore[arg-type]
        if self.epoch == 1:  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.loop.Records, "step", step)
        fit(settings, runs, quiet=True)


def test_losses_that_are_not_finite_are_left_out_up_to_the_limit(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import trainer.steps

    real, calls = trainer.steps.losses, []

    def poisoned(settings: TrainConfig, state: State, *others: object) -> object:
        calls.append(1)
        if len(calls) in (2, 5):
            for module in state.model.modules():  # what activations without bound leave behind
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.running_mean.fill_(float("nan"))  # type: ignore[union-attr]
        terms = real(settings, state, *others)  # type: ignore[arg-type]
        return terms._replace(cls=terms.cls * float("nan")) if len(calls) in (2, 5) else terms

    monkeypatch.setattr(trainer.steps, "losses", poisoned)
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
    with pytest.raises(TrainingError, match=r"not finite .*the last good checkpoint, .*last\.pt, holds epoch 1 after "
                       r"batch 4\. .*optim.on_nan=skip"):  # fmt: skip
        monkeypatch.setattr(trainer.steps, "losses", _nan_at(5, real))
        fit(config(data), tmp_path, quiet=True)


def _nan_at(number: int, real: Callable[..., object]) -> Callable[..., object]:
    calls: list[int] = []

    def poisoned(*arguments: object) -> object:
        calls.append(1)
        terms = real(*arguments)
        return terms._replace(cls=terms.cls * float("nan")) if len(calls) == number else terms  # type: ignore[attr-defined]

    return poisoned


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trainer.steps

    real = trainer.steps.clip_gradients
    seen: list[dict[str, torch.Tensor]] = []

    def poisoned(model: torch.nn.Module, largest: float) -> torch.Tensor:
        seen.append({k: v.clone() for k, v in model.named_parameters()})
        if len(seen) == 2:
            next(p for p in model.parameters() if p.grad is not None).grad.fill_(float("inf"))  # type: ignore[union-attr]
        return real(model, largest)

    monkeypatch.setattr(trainer.steps, "clip_gradients", poisoned)
    fit(config(data, "optim.on_nan=skip", "schedule.epochs=1"), tmp_path, quiet=True)
    first, second, third = seen[:3]
    assert any(not torch.equal(first[k], second[k]) for k in first)
    assert all(torch.equal(second[k], third[k]) for k in first)
    seen.clear()
    with pytest.raises(
        TrainingError, match=r"the gradient is not finite in epoch 1 .* on images \[\d+, \d+, \d+, \d+\]"
    ):
        fit(config(data), tmp_path, quiet=True)


def test_a_loader_process_killed_by_the_system_is_named_with_advice(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trainer.cache

    real, parent = trainer.cache.read_image, os.getpid()

    def killed(path: Path) -> object:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(path)

    monkeypatch.setattr(trainer.cache, "read_image", killed)
    with pytest.raises(TrainingError, match=r"a data loading process died: .*killed.*lower data\.workers or batch_size"
                       r".*no checkpoint was written"):  # fmt: skip
        fit(config(data, "data.workers=1"), tmp_path, quiet=True)


def test_random_numbers_of_all_three_generators_go_on(data: Path) -> None:
    settings = config(data)
    seed_everything(3)
    state = new_state(settings, Detector(settings.model), None, 10, Group())
    np.random.standard_normal()  # one of a pair: the other waits in the generator
    saved = state.state_dict()

    def draw() -> list[float]:
        return [random.random(), float(np.random.standard_normal()), float(np.random.rand()), float(torch.rand(()))]

    expected = draw()
    seed_everything(4)
    assert draw() != expected
    state.load_state_dict(saved)
    assert draw() == expected
