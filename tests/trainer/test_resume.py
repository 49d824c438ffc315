"""Killed, asked to stop, saved by an older version: a run that goes on ends as if nothing had happened."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import trainer.loop
from isodet.strict import ConfigError
from models.checkpoint import CheckpointError, read_checkpoint, save_checkpoint
from models.detector import Detector
from runtime.card.card import sha256_file
from tests.at_fault import raises
from tests.trainer.interrupted import ask_at_end_of_epoch, ask_at_step
from tests.trainer.processes import child, ended
from tests.trainer.tiny import TINY, edit, tiny_config
from trainer.__main__ import main
from trainer.config.train import TrainConfig
from trainer.devices.distributed import Group
from trainer.loop import Interrupted, fit
from trainer.run.folder import find_resumable
from trainer.state import new_state, seed_everything

PICTURES = (14, 3)
# 7 batches and 4 steps an epoch, the last of one batch; averaged weights come with the recipe.
KEYS = ["batch_size=2", "optim.accumulate=2", "checkpoint_steps=1"]


def config(data: Path, *overrides: str) -> TrainConfig:
    return tiny_config(data, *KEYS, *overrides)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupted."""
    return fit(config(data), tmp_path_factory.mktemp("whole"), quiet=True).run


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
    """Weights, averages, optimizer, schedule, scores, random numbers and the numbers that were written down."""
    one, other = (flat(read_checkpoint(r / "last.pt")["resume"]) for r in (run, whole))
    assert one.keys() == other.keys()
    for key, value in one.items():
        if "seconds" not in key:
            same = torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
            assert same, key
    one_rows, other_rows = ([*csv.DictReader((r / "metrics.csv").open())] for r in (run, whole))
    for row in (*one_rows, *other_rows):
        del row["seconds"], row["images_per_s"], row["data_wait"]
    assert one_rows == other_rows


def board(run: Path, tag: str) -> list[int]:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars(tag)]


def test_killed_at_random_moments_a_run_ends_as_one_never_killed(data, tmp_path, whole):
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


def test_killed_while_writing_the_old_file_stays(data, tmp_path, whole, monkeypatch):
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


@pytest.mark.parametrize("group", [False, True], ids=["the process", "its group"])
def test_a_signal_finishes_the_step_saves_and_names_the_command(data, tmp_path, whole, capsys, group):
    """group: as `timeout` and schedulers signal, loader processes too."""

    def work() -> object:
        if group:
            os.setsid()
        real = trainer.loop.train_epoch

        def signaled(*arguments: object) -> None:
            *others, after_step, saved = arguments
            state = others[0]

            def asked() -> None:
                if state.epoch == 1 and state.batch == 2:
                    os.killpg(0, signal.SIGTERM) if group else os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(0.5 * group)  # a loader process that dies is noticed
                after_step()

            real(*others, asked, saved)

        trainer.loop.train_epoch = signaled
        keys = ["checkpoint_steps=0", f"data.workers={int(group)}", "--runs", str(tmp_path / "runs"), "--quiet"]
        return main(["fit", str(data / "shapes.yaml"), *TINY, *KEYS, *keys])

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


def test_a_signal_during_validation_does_not_wait_and_the_second_leaves_at_once(data, tmp_path, whole, monkeypatch):
    real = trainer.loop.evaluate

    def signaled(*arguments: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(trainer.loop, "evaluate", signaled)
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


def test_what_cannot_be_resumed_is_said(whole):
    with pytest.raises(ConfigError, match="finished its 2 epochs"):
        find_resumable(whole)
    with pytest.raises(ConfigError, match="nothing to resume"):
        find_resumable(None, whole.parent)
    with raises(CheckpointError, path=whole / "best.pt"):
        find_resumable(whole / "best.pt")


def test_minutes_are_counted(data, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr("trainer.run.folder.save_checkpoint", lambda path, *_: saved.append(path.name))
    fit(config(data, "checkpoint_steps=0", "schedule.epochs=1"), tmp_path, quiet=True)
    assert saved.count("last.pt") == 1  # ten minutes are longer than this run
    fit(config(data, "checkpoint_steps=0", "schedule.epochs=1", "checkpoint_minutes=1e-9"), tmp_path, quiet=True)
    assert saved.count("last.pt") == 1 + 4 + 1


def test_a_run_saved_by_an_older_version_goes_on(data, tmp_path, whole):
    """It knew ends of epochs only, and fewer keys."""
    ask_at_end_of_epoch(1, config(data, "checkpoint_steps=0"), tmp_path)
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


def test_annotations_that_changed_are_refused_with_both_hashes_or_accepted_when_told(own, tmp_path, capsys):
    runs, file = tmp_path / "runs", own / "train.json"
    ask_at_step(5, config(own), runs)
    old, coco = sha256_file(file), json.loads(file.read_text())
    kept = {image["id"] for image in coco["images"][:8]}
    edit(file, images=coco["images"][:8], annotations=[a for a in coco["annotations"] if a["image_id"] in kept])
    resume = find_resumable(None, runs)
    with pytest.raises(ConfigError, match=rf"train\.json: .*is {sha256_file(file)}, it was {old};.*--changed-data"):
        fit(resume.config, runs, resume, quiet=True)
    assert main(["fit", "--resume", "--runs", str(runs), "--changed-data"]) == 0
    assert "the annotations changed since the checkpoint: epoch 2 starts again" in capsys.readouterr().err
    content = read_checkpoint(runs / "shapes" / "last.pt")["resume"]  # its epochs are shorter, and so is its schedule
    assert content["schedule"]["last_epoch"] == content["steps_per_epoch"] * resume.config.schedule.epochs
    assert read_checkpoint(runs / "shapes" / "last.pt")["card"]["hashes"]["train_annotations"] == sha256_file(file)


def test_annotations_that_change_under_a_run_do_not_change_it(own, tmp_path):
    real, file = trainer.loop.MetricsLog.step, own / "train.json"
    old = sha256_file(file)

    def step(self: object) -> None:
        file.write_text("no JSON any more")
        real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.loop.MetricsLog, "step", step)
        run = fit(config(own, "schedule.epochs=1"), tmp_path / "runs", quiet=True).run
    content = read_checkpoint(run / "last.pt")
    assert content["resume"]["records"]["images"] == 14  # every picture, as they were read at the start
    assert content["card"]["hashes"]["train_annotations"] == old != sha256_file(file)


def test_random_numbers_of_all_three_generators_go_on(data):
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
