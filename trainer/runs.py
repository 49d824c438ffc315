"""Run folders: `runs/<name>/` with `config.yaml`, `best.pt`, `last.pt`, `metrics.csv`, plots and a report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from models.checkpoint import CheckpointError, read_checkpoint, save_checkpoint
from models.typed import ConfigError, to_mapping
from runtime import Card
from runtime.datasets import fingerprint
from runtime.evaluate import Evaluation
from runtime.files import write_text
from runtime.records import CocoDataset
from trainer.cards import checkpoint_card
from trainer.config import TrainConfig, dump_config, read_config


@dataclass(frozen=True)
class Resume:
    """An interrupted run: its folder, its configuration and the training state of its last finished epoch."""

    run: Path
    config: TrainConfig
    state: dict[str, Any]


def find_resumable(target: str | Path | None, runs: str | Path = "runs") -> Resume:
    """The run to go on with: a run folder, a `last.pt`, or with None the newest run that is not finished.

    Raises `ConfigError` or `CheckpointError` where there is nothing to resume.
    """
    if target is not None:
        path = Path(target)
        return _resume(path / "last.pt" if path.is_dir() else path)
    candidates = sorted(Path(runs).glob("*/last.pt"), key=lambda p: p.stat().st_mtime, reverse=True)
    for path in candidates:
        try:
            return _resume(path)
        except ConfigError:  # finished
            continue
    raise ConfigError(f"nothing to resume: no unfinished run with a last.pt in {Path(runs).resolve()}")


def _resume(last: Path) -> Resume:
    state = read_checkpoint(last)["resume"]
    if state is None:
        raise CheckpointError(f"{last}: holds weights but no training state; resume from a run's last.pt")
    config = read_config(last.parent / "config.yaml", resolved=True)
    if state["epoch"] >= config.schedule.epochs:
        raise ConfigError(f"{last}: this run finished its {config.schedule.epochs} epochs; start a new one instead")
    return Resume(last.parent, config, state)


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @classmethod
    def new(cls, runs: Path, config: TrainConfig) -> RunFolder:
        """`runs/<name>`, or `runs/<name>-2` and so on where that exists, with the resolved config in it."""
        number = 1
        while True:
            path = runs / (config.name if number == 1 else f"{config.name}-{number}")
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:
                number += 1
        (path / "plots").mkdir()
        write_text(path / "config.yaml", dump_config(config))
        return cls(path)

    def save(
        self,
        weights: dict[str, torch.Tensor],
        card: Card,
        evaluation: Evaluation | None,
        epoch: int,
        resume: dict[str, Any],
        improved: bool,
    ) -> None:
        """Write last.pt, and best.pt (weights and card only) when the epoch improved on all before it."""
        metrics: dict[str, Any] = {"epoch": epoch}
        if evaluation is not None:
            measured = f"trainer fit, PyTorch {torch.__version__}, float32, {evaluation.images} validation images"
            metrics |= {**evaluation.to_json(), "measured_by": measured}
            card = replace(card, threshold=evaluation.threshold, thresholds=evaluation.thresholds)
        card = replace(card, metrics=metrics, created=datetime.now(timezone.utc).isoformat(timespec="seconds"))
        if improved:
            save_checkpoint(self.path / "best.pt", weights, card.to_json())
        save_checkpoint(self.path / "last.pt", weights, card.to_json(), resume)


def make_card(config: TrainConfig, train: CocoDataset, val: CocoDataset) -> Card:
    """What a checkpoint of this training says of itself, scores aside."""
    hashes = {"train_annotations": fingerprint(train), "val_annotations": fingerprint(val)}
    return checkpoint_card(config.model, hashes, to_mapping(config))
