"""Run folders: `runs/<name>/` with `config.yaml`, `best.pt`, `last.pt`, `metrics.csv`, plots and a report."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import Any

import torch

from isodet.strict import ConfigError, to_mapping
from models.checkpoint import CheckpointError, read_checkpoint, save_checkpoint
from runtime.card.card import Card
from runtime.datasets import fingerprint
from runtime.datasets.annotations import CocoDataset
from runtime.evaluation.evaluate import Evaluation
from runtime.files.write import write_text
from trainer.config.train import TrainConfig, dump_config
from trainer.config_reader import read_config
from trainer.run.checkpoint_card import checkpoint_card
from trainer.run.lock import is_training, training_in
from trainer.run.provenance import git_state


@dataclass(frozen=True)
class Resume:
    """An interrupted run: its folder, its configuration and the training state that it saved last."""

    run: Path
    config: TrainConfig
    state: dict[str, Any]
    hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the annotation files that it was trained on so far."""
    changed_data: bool = False
    """Go on although an annotation file has changed."""

    @property
    def where(self) -> str:
        """How far it is, as in 'epoch 3 of 12, after batch 40'."""
        epoch, batch = self.state["epoch"], self.state.get("batch", 0)
        if epoch == self.config.schedule.epochs:
            return "all epochs, but not the averaged weights"
        return f"epoch {epoch + 1} of {self.config.schedule.epochs}" + (f", after batch {batch}" if batch else "")

    def changes(self, card: Card) -> bool:
        """Whether annotation files changed since: by the hashes of `card`, which is today's.

        Raises `ConfigError`, which names both hashes, unless `changed_data` allows it.
        """
        changed = [k for k, old in self.hashes.items() if k.endswith("_annotations") and card.hashes.get(k, old) != old]
        if changed and not self.changed_data:
            key, data = changed[0], self.config.data
            splits = data.train_splits if key == "train_annotations" else (data.val,)
            raise ConfigError(
                f"{', '.join(split.annotations for split in splits)}: this is not what {self.run} was trained on: its "
                f"SHA-256 is {card.hashes[key]}, it was {self.hashes[key]}; bring the old file back, start a new run, "
                "or accept the change with --changed-data (the interrupted epoch then starts again)"
            )
        return bool(changed)


class _Finished(ConfigError):
    """A run that has nothing left to do."""


def find_resumable(target: str | Path | None, runs: str | Path = "runs", changed_data: bool = False) -> Resume:
    """The run to go on with: a run folder, a `last.pt`, or with None the newest run that is not finished.

    `changed_data` allows annotation files other than those that the run was started with. Raises `ConfigError` or
    `CheckpointError` where there is nothing to resume.
    """
    if target is not None:
        path = Path(target)
        return _resume(path / "last.pt" if path.is_dir() else path, changed_data)
    for path in sorted(Path(runs).glob("*/last.pt"), key=lambda p: p.stat().st_mtime, reverse=True):
        if is_training(path.parent):
            continue
        try:
            return _resume(path, changed_data)
        except _Finished:
            continue
    raise ConfigError(f"nothing to resume: no unfinished run with a last.pt in {Path(runs).resolve()}")


def _resume(last: Path, changed_data: bool) -> Resume:
    content = read_checkpoint(last)
    state = content["resume"]
    if state is None:
        raise CheckpointError.at(last, "holds weights but no training state; resume from a run's last.pt")
    if not state.get("finished"):
        config = read_config(last.parent / "config.yaml", resolved=True)
        if "finished" in state or state["epoch"] < config.schedule.epochs:
            return Resume(last.parent, config, state, content["card"].get("hashes", {}), changed_data)
    raise _Finished(f"{last}: this run finished its {state['epoch']} epochs; start a new one instead")


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @classmethod
    def new(cls, runs: Path, config: TrainConfig) -> RunFolder:
        """`runs/<name>`, or `runs/<name>-2` and so on where that exists, with the resolved config in it."""
        for number in count(1):
            path = runs / (config.name if number == 1 else f"{config.name}-{number}")
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:
                continue
        (path / "plots").mkdir()
        write_text(path / "config.yaml", dump_config(config))
        return cls(path)

    @classmethod
    def reopened(cls, path: Path) -> RunFolder:
        """The folder of an interrupted run, without what a killed process was writing.

        Raises `ConfigError` while another process trains in it.
        """
        with training_in(path):
            for partial in path.glob(".*.partial*"):
                partial.unlink(missing_ok=True)
        return cls(path)

    def save(
        self, weights: dict[str, torch.Tensor], card: Card, improved: bool, resume: dict[str, Any] | None = None
    ) -> None:
        """Write `weights` as last.pt, with the training state `resume`; without one, as averaged weights, as swa.pt.

        Where they `improved` on all before them, write them, without the state, as best.pt too. Raises
        `CheckpointError`.
        """
        if improved:
            save_checkpoint(self.path / "best.pt", weights, card.to_json())
        save_checkpoint(self.path / ("last.pt" if resume else "swa.pt"), weights, card.to_json(), resume)


def scored_card(card: Card, progress: dict[str, Any], evaluation: Evaluation | None) -> Card:
    """`card` with how far the training is (`progress`), and what it scored."""
    metrics = {**card.metrics, **progress}
    if evaluation is not None:
        measured = f"trainer fit, PyTorch {torch.__version__}, float32, {evaluation.images} validation images"
        metrics |= {**evaluation.to_json(), "measured_by": measured}
        card = replace(card, threshold=evaluation.threshold, thresholds=evaluation.thresholds)
    return replace(card, metrics=metrics, created=datetime.now(timezone.utc).isoformat(timespec="seconds"))


def make_card(config: TrainConfig, train: CocoDataset, val: CocoDataset, amp: torch.dtype | None) -> Card:
    """What a checkpoint of this training, autocast to `amp`, says of itself, scores aside."""
    hashes = {"train_annotations": fingerprint(train), "val_annotations": fingerprint(val)}
    quantization = None if config.qat is None else {"kind": "qat", **to_mapping(config.qat)}
    card = checkpoint_card(config.model, hashes, to_mapping(config), quantization=quantization)
    tiles = {} if config.data.tiles is None else to_mapping(config.data.tiles.rule)
    trained_in = str(amp or torch.float32).removeprefix("torch.")
    return replace(card, tiles=tiles, metrics={"trained_in": trained_in}, versions={**card.versions, **git_state()})
