"""Loggers, which get the numbers of each epoch: TensorBoard, and by choice Weights & Biases and MLflow."""

from __future__ import annotations

import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from isodet.errors import IsodetError
from isodet.strict import to_mapping
from runtime.files.write import write_text
from trainer.config.log import Tracker
from trainer.config.train import TrainConfig

Ended = Literal["finished", "interrupted", "failed"]

_log = logging.getLogger(__name__)
_IDS = "trackers.json"
"""File in the run's folder with each tracker's id of the run, which a resumed run continues."""


class RecordsError(IsodetError, ValueError):
    """A tracker that cannot be started; the message names it and what to do."""


class Logger(Protocol):
    where: str
    """A sentence on where the records are; '' for TensorBoard, whose place is known."""

    def epoch(self, values: Mapping[str, float], step: int) -> None:
        """Keep the numbers of an epoch, named as `train/loss` or `val/map`, which ended with optimizer step `step`."""

    def close(self, ended: Ended) -> None:
        """End the records: this process trains no more."""


def open_loggers(config: TrainConfig, run: Path, purge_step: int | None) -> list[Logger]:
    """TensorBoard and what `config.log` names, for the run folder `run`. A resumed run continues its records.

    Where TensorBoard is not installed, the log says so; metrics.csv has all numbers.

    purge_step: events of TensorBoard from this step on are dropped. Raises `RecordsError`.
    """
    kinds: dict[Tracker, Callable[[TrainConfig, Path], Logger]] = {"wandb": WandbLogger, "mlflow": MlflowLogger}
    loggers: list[Logger] = []
    try:
        loggers.append(TensorBoardLogger(run, purge_step))
    except ImportError as error:
        _log.warning("no TensorBoard, metrics.csv has the numbers (%s): pip install 'isodet[train]'", error)
    try:
        for name in config.log:
            loggers.append(kinds[name](config, run))
    except BaseException:
        for logger in loggers:
            logger.close("failed")
        raise
    return loggers


class TensorBoardLogger:
    where = ""

    def __init__(self, run: Path, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here: only a run needs it

        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=purge_step)

    def epoch(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()

    def close(self, ended: Ended) -> None:
        self._board.close()


class WandbLogger:
    """A run of Weights & Biases, in project $WANDB_PROJECT or isodet; WANDB_MODE=offline keeps it in the run's folder.

    A resumed run has the same id: W&B continues it, or `wandb sync` does.
    """

    def __init__(self, config: TrainConfig, run: Path) -> None:
        import wandb

        identity = _ids(run).get("wandb") or secrets.token_hex(6)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "isodet"), name=run.name, id=identity, resume="allow",
                dir=str(run), config=to_mapping(config), settings=wandb.Settings(silent=True, console="off"),
            )  # fmt: skip
        except wandb.Error as error:
            raise RecordsError.of(
                "log", f"wandb cannot start: {error}; run `wandb login`, set WANDB_MODE=offline, or take it out of log"
            ) from error
        _keep_id(run, "wandb", identity)
        self.where = f"W&B: {self._run.settings.sync_dir if self._run.offline else self._run.url}"

    def epoch(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self, ended: Ended) -> None:
        self._run.finish(exit_code=0 if ended == "finished" else 1)


class MlflowLogger:
    """A run of MLflow, in experiment $MLFLOW_EXPERIMENT_NAME or isodet, where $MLFLOW_TRACKING_URI says.

    While a server does not answer, the numbers of those epochs are lost, and the log says so; the training goes on.
    """

    def __init__(self, config: TrainConfig, run: Path) -> None:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        self._failures: type[Exception] = MlflowException
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "isodet")
        run_id = _ids(run).get("mlflow")
        try:
            self._client = MlflowClient()
            if run_id is None:
                experiment = self._client.get_experiment_by_name(name)
                number = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
                self._id = str(self._client.create_run(number, run_name=run.name).info.run_id)
                self._describe(config)
            else:
                self._id = run_id
                self._client.update_run(run_id, status="RUNNING")
        except (MlflowException, ImportError) as error:  # ImportError: a store whose packages are missing
            again = f" (the run is {run_id} by {run / _IDS}; without that file a new one starts)" if run_id else ""
            raise RecordsError.of(
                "log",
                f"mlflow cannot start: {error}{again}; set MLFLOW_TRACKING_URI to a server that is there, install "
                "isodet[mlflow], or take mlflow out of log",
            ) from error
        _keep_id(run, "mlflow", self._id)
        self.where = f"MLflow: run {self._id} of experiment {name}, {self._client.tracking_uri}"

    def _describe(self, config: TrainConfig) -> None:
        from mlflow.entities import Param

        # Servers take 100 parameters at a time, and old servers 500 characters of each.
        flat = [Param(key, str(value)[:500]) for key, value in flattened(to_mapping(config))]
        for start in range(0, len(flat), 100):
            self._client.log_batch(self._id, params=flat[start : start + 100])

    def epoch(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        try:
            self._client.log_batch(self._id, metrics=[Metric(k, float(v), now, step) for k, v in values.items()])
        except self._failures as error:
            _log.warning("mlflow did not take the numbers of step %d, which metrics.csv has: %s", step, error)

    def close(self, ended: Ended) -> None:
        status = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}[ended]
        try:
            self._client.set_terminated(self._id, status)
        except self._failures as error:
            _log.warning("mlflow was not told that run %s is over: %s", self._id, error)


def flattened(mapping: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """(`optim.lr`, value) of a nested mapping; lists are values."""
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _ids(run: Path) -> dict[str, str]:
    path = run / _IDS
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _keep_id(run: Path, tracker: str, identity: str) -> None:
    write_text(run / _IDS, json.dumps(_ids(run) | {tracker: identity}) + "\n")
