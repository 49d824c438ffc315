"""`trainer runs`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from runtime.commands.arguments import flag
from runtime.commands.shared import Quiet
from runtime.files.text_table import text_table

if TYPE_CHECKING:
    from trainer.run.list import RunSummary

_HEAD = ("run", "detector", "epochs", "mAP", "AP50", "state", "started", "time", "precision", "data")
_RIGHT = {"epochs", "mAP", "AP50", "time"}


@dataclass(frozen=True, kw_only=True)
class Runs(Quiet):
    """List the runs in FOLDER: scores, state, time, data.

    folder: folder of the runs
    sort: newest (default) or best first
    json: all that is known of each, the git commit too, as JSON

    examples:
      trainer runs                     the newest first
      trainer runs --sort map          the best first
      trainer runs --json | jq '.[] | select(.state == "interrupted") | .name'

    state: finished, running (in some process now), interrupted (`trainer fit --resume` goes on), not started (stopped
    before its first checkpoint) or broken (the reason is below the table)
    """

    folder: Annotated[Path, flag("folder")] = Path("runs")
    sort: Literal["started", "map"] = "started"
    json: bool = False

    def run(self) -> int:
        from trainer.run.list import by_map, list_runs

        runs = list_runs(self.folder)
        if self.sort == "map":
            runs = by_map(runs)
        if self.json:
            print(dumps([asdict(run) for run in runs], indent=1))
            return 0
        if not runs:
            print(f"no runs in {self.folder}/ yet; `trainer fit` makes them")
            return 0
        print("\n".join(text_table(_HEAD, list(map(_row, runs)), left=set(_HEAD) - _RIGHT)))
        for run in runs:
            if run.problem:
                print(f"{run.name}: {run.problem}")
        resumable = next((run for run in runs if run.state == "interrupted"), None)
        if resumable is not None:
            print(f"next: trainer fit --resume {Path(self.folder) / resumable.name}")
        return 0


def _row(run: RunSummary) -> tuple[str, ...]:
    started = "" if run.started is None else datetime.fromisoformat(run.started).astimezone().strftime("%Y-%m-%d %H:%M")
    detector = "" if run.detector is None else f"{run.detector} {run.backbone}"
    return (
        run.name, detector, f"{run.epochs_done}/{'?' if run.epochs is None else run.epochs}", _score(run.map),
        _score(run.ap50), run.state, started, _time(run.seconds), run.precision or "", _data(run.train),
    )  # fmt: skip


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _time(seconds: float) -> str:
    hours, minutes = int(seconds) // 3600, int(seconds) % 3600 // 60
    return f"{hours}:{minutes:02d} h" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"


def _data(train: tuple[str, ...]) -> str:
    """The first annotations with their folder: file names alone are the same everywhere."""
    if not train:
        return ""
    more = f" +{len(train) - 1}" if len(train) > 1 else ""
    return "/".join(Path(train[0]).parts[-2:]) + more
