"""Weights & Biases and MLflow: asked for in the config, told every epoch, continued when a run is resumed.

The runs below are recorded by the real packages, on this disk, where they are installed.
"""

from __future__ import annotations

import importlib.util
import json
import math
import struct
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from isodet.strict import ConfigError
from tests.processes import python
from tests.trainer.tiny import tiny_config
from trainer.config.train import TrainConfig
from trainer.failures import Interrupted
from trainer.log import metrics
from trainer.log.loggers import RecordsError, flattened
from trainer.log.metrics import read_metrics
from trainer.loop import fit
from trainer.run.checkpoints import Checkpoints
from trainer.run.folder import find_resumable

PICTURES = (8, 4)


def needs(package: str) -> pytest.MarkDecorator:
    there = importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(not there, reason=f"the optional package {package} is not installed")


def config(data: Path, *overrides: str) -> TrainConfig:
    return tiny_config(data, "optim.ema=0", *overrides)


def test_only_a_run_needs_tensorboard_and_trains_without(data, tmp_path, monkeypatch, caplog):
    loaded = "import sys, trainer.loop, trainer.step; print('tensorboard' in sys.modules)"
    assert python("-c", loaded).stdout == "False\n"
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    result = fit(config(data), tmp_path, quiet=True)
    assert "no TensorBoard" in caplog.text and "isodet[train]" in caplog.text
    assert read_metrics(result.run / "metrics.csv") and not (result.run / "tensorboard").exists()


class Stopper:
    """A logger that stops the run at its first epoch, as a signal does."""

    where = ""

    def __init__(self) -> None:
        self.epochs: list[tuple[int, dict[str, float]]] = []
        self.ended = ""

    def epoch(self, values: Any, step: int) -> None:
        self.epochs.append((step, dict(values)))
        raise Interrupted("stopped")

    def close(self, ended: str) -> None:
        self.ended = ended


def stopped_after_one(settings: TrainConfig, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that a signal stops when its first epoch is saved."""
    end = Checkpoints.end_epoch

    def ends(self: Checkpoints, *arguments: Any, **named: Any) -> None:
        end(self, *arguments, **named)
        self.stop_here(save=False)

    with monkeypatch.context() as once, pytest.raises(Interrupted):
        once.setattr(Checkpoints, "end_epoch", ends)
        fit(settings, runs, quiet=True)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_an_error_of_the_config(data, name, monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == name else find(n, *a))
    with pytest.raises(ConfigError, match=rf"log: {name} is not installed; pip install 'isodet\[{name}\]'"):
        config(data, f"log=[{name}]")
    with pytest.raises(ConfigError, match="log.*expected one of wandb, mlflow, got 'wandbs'.*did you mean 'wandb'"):
        config(data, "log=[wandbs]")
    assert config(data).log == ()


def test_a_folder_of_the_same_name_is_no_package(data, monkeypatch, tmp_path):
    (tmp_path / "wandb").mkdir()  # what W&B leaves in a working folder
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ConfigError, match="log: wandb is not installed"):
        config(data, "log=[wandb]")


def test_loggers_get_the_rows_by_split_and_are_told_how_it_ended(data, tmp_path, monkeypatch):
    stopper = Stopper()
    monkeypatch.setattr(metrics, "open_loggers", lambda *_: [stopper])
    with pytest.raises(Interrupted):
        fit(config(data), tmp_path, quiet=True)
    ((step, values),) = stopper.epochs
    assert (step, stopper.ended) == (2, "interrupted")
    assert {"train/loss", "train/lr", "train/seconds", "val/map", "val/ap50"} <= values.keys()
    assert not {"train/epoch", "train/step"} & values.keys()


def test_nested_keys_are_written_with_points():
    mapping = {"a": {"b": {"c": 1}, "d": [1, 2]}, "e": None, "f": {}}
    assert dict(flattened(mapping)) == {"a.b.c": 1, "a.d": [1, 2], "e": None, "f": {}}


@needs("mlflow")
def test_mlflow_has_every_epoch_once_also_of_a_resumed_run(data, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    plain = config(data, "log=[mlflow]")
    stopped_after_one(plain, tmp_path / "runs", monkeypatch)
    client = MlflowClient()
    experiment = client.get_experiment_by_name("isodet")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "KILLED"
    again = find_resumable(None, tmp_path / "runs")
    result = fit(again.config, tmp_path / "runs", again, quiet=True)
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "shapes")
    assert run.data.params["optim.lr"] == str(plain.optim.lr)
    rows = read_metrics(result.run / "metrics.csv")
    for column, name in (("loss", "train/loss"), ("map", "val/map")):
        history = client.get_metric_history(run.info.run_id, name)
        assert [m.step for m in history] == [2, 4]
        assert [m.value for m in history] == pytest.approx([r.get(column, math.nan) for r in rows], rel=1e-4)


@needs("mlflow")
def test_an_mlflow_that_is_not_there_ends_a_run_at_its_start_but_not_later(data, tmp_path, monkeypatch, caplog):
    import mlflow
    from mlflow.exceptions import MlflowException

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(RecordsError, match="log: mlflow cannot start: .*set MLFLOW_TRACKING_URI"):
        fit(config(data, "log=[mlflow]"), tmp_path / "runs", quiet=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")

    def gone(self: object, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        if metrics:
            raise MlflowException("the server went away")

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", gone)
    fit(config(data, "log=[mlflow]", "name=b"), tmp_path / "runs", quiet=True)
    assert "mlflow did not take the numbers of step 2" in caplog.text and "the server went away" in caplog.text


@needs("wandb")
def test_wandb_keeps_every_epoch_offline_and_a_resumed_run_its_id(data, tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    stopped_after_one(config(data, "log=[wandb]"), tmp_path, monkeypatch)
    time.sleep(1)  # W&B names its folders by seconds
    again = find_resumable(None, tmp_path)
    run = fit(again.config, tmp_path, again, quiet=True).run
    wandb.teardown()  # its own process has then written all to the disk, as when ours ends
    identity = json.loads((run / "trackers.json").read_text())["wandb"]
    files = sorted(run.glob("wandb/offline-run-*/run-*.wandb"))
    assert [file.name for file in files] == [f"run-{identity}.wandb"] * 2
    logged = [row for file in files for row in wandb_history(file)]
    rows = read_metrics(run / "metrics.csv")
    assert [row["_step"] for row in logged] == [2, 4]
    assert [row["train/loss"] for row in logged] == pytest.approx([row["loss"] for row in rows], rel=1e-4)


def wandb_history(file: Path) -> list[dict[str, float]]:
    """The history records of an offline run: a header of 7 bytes, then a log as LevelDB has it, in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    content, at, whole, found = file.read_bytes(), 7, b"", []
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # no room for a header: zeros up to the next block
            at += 32768 - at % 32768
            continue
        _, length, part = struct.unpack("<IHB", content[at : at + 7])
        whole = (b"" if part in (1, 2) else whole) + content[at + 7 : at + 7 + length]
        at += 7 + length
        if part in (1, 4):  # all of it, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            if record.WhichOneof("record_type") == "history":
                found.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item})
    return found


@needs("wandb")
def test_wandb_without_a_key_says_what_to_do(data, tmp_path, monkeypatch):
    import wandb

    wandb.teardown()  # it reads the environment once in a process
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(RecordsError, match="log: wandb cannot start: .*wandb login.*WANDB_MODE=offline"):
        fit(config(data, "log=[wandb]"), tmp_path, quiet=True)
