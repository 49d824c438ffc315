"""`trainer runs`: what is there, in which state, and what is wrong with what cannot be read."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from isodet.strict import ConfigError
from models.checkpoint import read_checkpoint, save_checkpoint
from runtime.runs import RunsError
from tests.at_fault import raises
from tests.trainer.tiny import tiny_config
from trainer.__main__ import main
from trainer.config.train import TrainConfig
from trainer.loop import fit
from trainer.run import lock as running
from trainer.run.folder import find_resumable
from trainer.run.list import by_map, list_runs, read_run
from trainer.run.lock import is_training, training_in

PICTURES = (8, 4)


@pytest.fixture(scope="module")
def config(data: Path) -> TrainConfig:
    return tiny_config(data, "val_interval=5")


@pytest.fixture(scope="module")
def finished(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(config, tmp_path_factory.mktemp("finished"), quiet=True).run


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> Path:
    """A folder with one finished run, `a`, for a test to change."""
    shutil.copytree(finished, tmp_path / "runs" / "a")
    return tmp_path / "runs"


def rewrite(path: Path, card: dict[str, object], **resume: object) -> None:
    """Change keys of a checkpoint's card, and of its training state where it has one."""
    content = read_checkpoint(path)
    state = content["resume"] and content["resume"] | resume
    save_checkpoint(path, content["model"], content["card"] | card, state)


def interrupt(run: Path) -> None:
    """Make `run` one that was stopped within its second epoch."""
    records = read_checkpoint(run / "last.pt")["resume"]["records"] | {"seconds": 100.0}
    rewrite(run / "last.pt", {}, epoch=1, batch=1, finished=False, records=records)


def judged(run: Path, **metrics: object) -> None:
    """Change metrics of the best checkpoint of `run`."""
    rewrite(run / "best.pt", {"metrics": read_checkpoint(run / "best.pt")["card"]["metrics"] | metrics})


def test_a_finished_run_says_what_it_was(runs):
    (run,) = list_runs(runs)
    best = read_checkpoint(runs / "a" / "best.pt")["card"]["metrics"]
    assert (run.name, run.state, run.problem) == ("a", "finished", "")
    assert (run.detector, run.backbone, run.precision) == ("atss", "resnet18 x0.125", "float32")
    assert (run.epochs_done, run.epochs) == (2, 2)
    assert (run.map, run.ap50) == (best["map"], best["ap50"])
    assert run.train[0].endswith("data/train.json") and run.val is not None and run.val.endswith("data/val.json")


def test_scores_are_those_of_best_pt_also_where_it_holds_averaged_weights(runs):
    judged(runs / "a", map=77.0, ap50=88.0, averaged=True)
    assert (read_run(runs / "a").map, read_run(runs / "a").ap50) == (77.0, 88.0)


def test_without_best_pt_the_best_row_counts(runs):
    (runs / "a" / "best.pt").unlink()
    (runs / "a" / "metrics.csv").write_text("epoch,map,ap50,seconds\n1,30,50,60\n2,20,60,60\n3,,,5\n")
    assert (read_run(runs / "a").map, read_run(runs / "a").ap50, read_run(runs / "a").seconds) == (30, 50, 125)


def test_an_interrupted_run_is_where_resuming_goes_on(runs):
    before = read_run(runs / "a").seconds
    interrupt(runs / "a")
    run = read_run(runs / "a")
    assert (run.state, run.epochs_done) == ("interrupted", 1)
    assert run.seconds == pytest.approx(before + 100)
    assert find_resumable(None, runs).run == runs / "a"


def test_a_newest_run_that_cannot_be_read_is_not_passed_over(runs):
    """Or an older one would be trained on in its place."""
    shutil.copytree(runs / "a", runs / "b")
    interrupt(runs / "a")
    interrupt(runs / "b")
    text = (runs / "b" / "config.yaml").read_text()
    (runs / "b" / "config.yaml").write_text(text + "\nunheard_of: 1\n")
    with pytest.raises(ConfigError, match=r"b/config\.yaml.*unheard_of"):
        find_resumable(None, runs)
    rewrite(runs / "b" / "last.pt", {}, finished=True)
    assert find_resumable(None, runs).run == runs / "a"  # a finished one needs no config


def test_a_run_that_ended_early_is_finished(runs):
    rewrite(runs / "a" / "last.pt", {}, epoch=1)
    assert (read_run(runs / "a").state, read_run(runs / "a").epochs_done) == ("finished", 1)


def test_the_newest_is_first_and_by_map_the_best(runs):
    for name, when, score in (("old", 1e9, 50.0), ("older", 9e8, 60.0), ("unjudged", 8e8, None)):
        shutil.copytree(runs / "a", runs / name)
        os.utime(runs / name / "config.yaml", (when, when))
        judged(runs / name, map=score)
    found = list_runs(runs)
    assert [run.name for run in found] == ["a", "old", "older", "unjudged"]
    assert [run.name for run in by_map(found)] == ["older", "old", "a", "unjudged"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.yaml", None, "config.yaml: cannot be read: No such file"),
        ("config.yaml", "model: [", "config.yaml: cannot be read: while parsing"),
        ("config.yaml", "model: {}\n", "its configuration is not one of a run"),
        ("config.yaml", "- 1\n", "its configuration is not one of a run"),
        ("last.pt", "PK", "last.pt: cannot read this checkpoint"),
        ("best.pt", "", "best.pt: cannot read this checkpoint"),
        ("metrics.csv", "epoch,map\n1,much\n", "metrics.csv: not a table of epochs"),
        ("metrics.csv", "map\n3\n", "metrics.csv: not a table of epochs"),
    ],
)
def test_a_broken_run_is_listed_with_the_reason(runs, name, content, reason):
    shutil.copytree(runs / "a", runs / "good")
    (runs / "a" / name).unlink()
    if content is not None:
        (runs / "a" / name).write_text(content)
    found = {run.name: run for run in list_runs(runs)}
    assert found["a"].state == "broken" and reason in found["a"].problem
    assert found["good"].state == "finished"


def test_what_the_training_state_lacks_is_a_reason(runs):
    interrupt(runs / "a")
    content = read_checkpoint(runs / "a" / "last.pt")
    without = {key: value for key, value in content["resume"].items() if key != "records"}
    save_checkpoint(runs / "a" / "last.pt", content["model"], content["card"], without)
    assert "its checkpoints say nothing of a training (KeyError" in read_run(runs / "a").problem
    save_checkpoint(runs / "a" / "last.pt", content["model"], content["card"])
    assert "holds no training state" in read_run(runs / "a").problem


def test_folders_that_are_no_runs_and_runs_without_a_checkpoint(runs):
    (runs / "folder").mkdir()
    (runs / ".hidden").mkdir()
    (runs / "file").write_text("")
    for name in ("last.pt", "best.pt", "metrics.csv"):
        (runs / "a" / name).unlink()
    found = {run.name: run for run in list_runs(runs)}
    assert set(found) == {"a"}
    assert found["a"].state == "not started" and found["a"].detector == "atss"
    assert read_run(runs / "folder").problem.startswith("not a run: none of config.yaml")
    with raises(RunsError, path=runs / "nowhere"):
        list_runs(runs / "nowhere")


def test_a_run_is_running_until_its_process_ends_even_by_kill(runs, monkeypatch):
    interrupt(runs / "a")
    code = "import sys, time; from pathlib import Path; from trainer.run.lock import training_in\n"
    code += "with training_in(Path(sys.argv[1])):\n    print('there', flush=True)\n    time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(runs / "a")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "there\n"
        assert read_run(runs / "a").state == "running"
        with pytest.raises(ConfigError, match="nothing to resume"):  # the newest *interrupted* one
            find_resumable(None, runs)
        monkeypatch.setattr(running, "_PATIENCE_S", 0.2)
        (runs / "a" / ".last.pt.1.partial").write_text("what the other process writes")
        with pytest.raises(ConfigError, match="a: another process is training in it"):
            resume = find_resumable(runs / "a")
            fit(resume.config, runs, resume, quiet=True)
        assert (runs / "a" / ".last.pt.1.partial").exists()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert read_run(runs / "a").state == "interrupted"


def test_fit_holds_its_run_while_it_trains(config, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("trainer.loop.validation_sheet", lambda *_: seen.append(read_run(tmp_path / "shapes").state))
    run = fit(config, tmp_path, quiet=True).run
    assert seen == ["running"]
    assert not is_training(run)
    with training_in(run):
        assert is_training(run)


def test_the_table_and_the_json(runs, capsys):
    shutil.copytree(runs / "a", runs / "cut")
    interrupt(runs / "cut")
    (runs / "bad").mkdir()
    (runs / "bad" / "best.pt").write_bytes(b"cut off")
    assert main(["runs", str(runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[0].split()) == "run detector epochs mAP AP50 state started time precision data"
    row = next(line for line in lines if line.startswith("cut"))
    assert "atss resnet18 x0.125" in row and "1/2" in row and "interrupted" in row and row.endswith("data/train.json")
    assert any(line.startswith("bad") and "best.pt" in line for line in lines)
    assert lines[-1] == f"next: trainer fit --resume {runs / 'cut'}"
    assert main(["runs", str(runs), "--sort", "map", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {run["name"]: run["state"] for run in found} == {"a": "finished", "cut": "interrupted", "bad": "broken"}
    assert found[0]["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    shutil.rmtree(runs)
    runs.mkdir()
    assert main(["runs", str(runs)]) == 0
    assert "no runs in" in capsys.readouterr().out
    assert main(["runs", str(runs / "x")]) == 1
