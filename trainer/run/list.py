"""What the run folders say of themselves: `trainer runs`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import yaml

from models.checkpoint import CheckpointError, read_checkpoint
from runtime.files.yaml import parse_yaml
from runtime.runs import RunsError
from trainer.log.metrics import read_metrics
from trainer.run.lock import is_training


@dataclass(frozen=True)
class RunSummary:
    name: str
    state: Literal["finished", "interrupted", "running", "not started", "broken"]
    """interrupted: `trainer fit --resume` goes on. not started: no checkpoint was written. broken: see `problem`."""
    problem: str = ""
    """What could not be read, with the reason; empty for a run in order."""
    detector: str | None = None
    backbone: str | None = None
    epochs_done: int = 0
    epochs: int | None = None
    map: float | None = None
    """Best mAP, 0..100, and the AP50 of the same weights; None where nothing was validated or nothing was to find."""
    ap50: float | None = None
    started: str | None = None
    """ISO 8601: when the run's configuration was written, which resuming leaves as it is."""
    seconds: float = 0.0
    """Of training and validation; the time between an interruption and its resumption is not in it."""
    train: tuple[str, ...] = ()
    """Annotations trained on."""
    val: str | None = None
    precision: str | None = None
    """int8 (quantization-aware) or float32, bfloat16, float16; auto where an older version did not say."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the checkpoint's card, the git commit among them."""


_OF_A_RUN = ("config.yaml", "last.pt", "best.pt", "metrics.csv")


def list_runs(folder: str | Path = "runs") -> list[RunSummary]:
    """Every run in `folder`, the newest first. A run that cannot be read is listed with the reason. A folder without
    any file of a run, as one of data, is left out.

    Raises `RunsError` where `folder` is no folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunsError.at(folder, "no such folder of runs; name one, or train with `trainer fit`")
    paths = [
        path
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".") and any((path / name).exists() for name in _OF_A_RUN)
    ]
    return sorted(map(read_run, sorted(paths)), key=lambda run: run.started or "", reverse=True)


def by_map(runs: list[RunSummary]) -> list[RunSummary]:
    """The best mAP first; runs without one last, in the order that they had."""
    return sorted(runs, key=lambda run: -math.inf if run.map is None else run.map, reverse=True)


def read_run(run: Path) -> RunSummary:
    """The summary of one run folder. It raises no error: what cannot be read is told in `problem`."""
    problems: list[str] = []
    last, best = (_checkpoint(run / name, problems) for name in ("last.pt", "best.pt"))
    card = (last or best or {}).get("card") or {}
    config = _config(run / "config.yaml", problems) or card.get("training") or {}
    rows = _rows(run / "metrics.csv", problems)
    summary = RunSummary(run.name, "broken", versions=card.get("versions") or {})
    try:
        summary = _described(summary, config, card)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        problems.append(f"its configuration is not one of a run ({type(error).__name__}: {error})")
    try:
        summary = _trained(summary, rows, last, best)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        problems.append(f"its checkpoints say nothing of a training ({type(error).__name__}: {error})")
    summary = replace(summary, started=_started(run, card))
    if is_training(run):
        state: Any = "running"
    elif problems:
        state = "broken"
        if last is None and best is None and not rows and not config:
            problems = ["not a run: none of config.yaml, last.pt, best.pt and metrics.csv can be read"]
    elif last is None:
        state = "not started"
    else:
        all_done = summary.epochs is not None and summary.epochs_done >= summary.epochs
        state = "finished" if last["resume"].get("finished", all_done) else "interrupted"
    return replace(summary, state=state, problem="; ".join(problems))


def _checkpoint(path: Path, problems: list[str]) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content = read_checkpoint(path, mapped=True)
    except CheckpointError as error:
        problems.append(str(error).replace(str(path), path.name, 1))
        return None
    if not isinstance(content["card"], Mapping) or (path.name == "last.pt" and not isinstance(content["resume"], dict)):
        problems.append(f"{path.name}: holds no training state, so `trainer fit` did not write it")
        return None
    return content


def _config(path: Path, problems: list[str]) -> Any:
    """The file as a plain mapping: a list loads no custom parts, and shows the runs of other versions too."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        problems.append(f"{path.name}: cannot be read: {reason}")
        return None


def _rows(path: Path, problems: list[str]) -> list[dict[str, float]]:
    try:
        rows = read_metrics(path)
        [row["epoch"] for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problems.append(f"{path.name}: not a table of epochs ({type(error).__name__}: {error})")
        return []
    return rows


def _described(summary: RunSummary, config: Any, card: Mapping[str, Any]) -> RunSummary:
    model, data = config["model"], config["data"]
    backbone, width = model["backbone"]["name"], float(model["backbone"].get("width", 1.0))
    splits = data["train"] if isinstance(data["train"], list) else [data["train"]]
    names = {"bf16": "bfloat16", "fp16": "float16", "off": "float32"}
    amp = (card.get("metrics") or {}).get("trained_in") or names.get(config.get("amp"), config.get("amp"))
    return replace(
        summary,
        detector=str(model["detector"]),
        backbone=backbone if width == 1 else f"{backbone} x{width:g}",
        epochs=int(config["schedule"]["epochs"]),
        train=tuple(str(split["annotations"]) for split in splits),
        val=str(data["val"]["annotations"]),
        precision=f"int8, {amp}" if config.get("qat") else amp,
    )


def _trained(
    summary: RunSummary, rows: list[dict[str, float]], last: dict[str, Any] | None, best: dict[str, Any] | None
) -> RunSummary:
    """`summary` with epochs from last.pt, where resuming starts, and scores from best.pt, also of averaged weights."""
    resume = {} if last is None else last["resume"]
    done = int(resume.get("epoch", max((row["epoch"] for row in rows), default=0)))
    seconds = sum(row.get("seconds", 0.0) for row in rows)
    if resume.get("batch"):
        seconds += float(resume["records"]["seconds"])
    measured = {} if best is None else best["card"].get("metrics") or {}
    scores = (measured.get("map"), measured.get("ap50"))
    judged = [row for row in rows if not math.isnan(row.get("map", math.nan))]
    if best is None and judged:
        top = max(judged, key=lambda row: row["map"])
        scores = (top["map"], top.get("ap50"))
    return replace(summary, epochs_done=done, map=scores[0], ap50=scores[1], seconds=seconds)


def _started(run: Path, card: Mapping[str, Any]) -> str | None:
    """When config.yaml was written; without it, when the checkpoint was."""
    try:
        when = datetime.fromtimestamp((run / "config.yaml").stat().st_mtime, timezone.utc)
    except OSError:
        return str(card["created"]) if card.get("created") else None
    return when.isoformat(timespec="seconds")
