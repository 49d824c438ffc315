"""What the sequence found, printed and written as it comes, so that a run that is cut short still tells."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.stage import Row, Stage, State
from runtime.files.write import write_text

SIGNS = {True: "reached", False: "**missed**", None: ""}


@dataclass
class StageReport:
    """A stage that has begun."""

    name: str
    rows: list[Row] = field(default_factory=list)
    state: State | None = None
    """None while it runs."""
    why: str = ""
    """Why it is not done, in one line."""
    seconds: float = 0.0


class Report:
    """Rows and endings, in `out` as results.json and results.md, and the stages' own output in log.txt.

    A folder that cannot be written, as on a full disk, costs the files and nothing else: everything is printed, too.
    """

    def __init__(self, out: Path, command: str, small: bool) -> None:
        self.out, self.command, self.small = out, command, small
        self.started = time.strftime("%Y-%m-%d %H:%M:%S %z")
        self.stages: list[StageReport] = []
        self.trouble = ""
        """Why files could not be written."""
        self._written("log.txt", lambda path: path.write_text(""))

    def begin(self, stage: Stage) -> StageReport:
        self.stages.append(StageReport(stage.name))
        print(f"\n{stage.name}: {stage.about}", flush=True)
        return self.stages[-1]

    def add(self, stage: StageReport, row: Row) -> None:
        stage.rows.append(row)
        aim = f"  [{row.aim}: {'reached' if row.reached else 'MISSED'}]" if row.aim else ""
        note = f"  ({row.note})" if row.note else ""
        print(f"  {row.what}: {shown(row.value)} {row.unit}".rstrip() + aim + note, flush=True)
        self.write()

    def end(self, stage: StageReport, state: State, why: str, seconds: float) -> None:
        stage.state, stage.why, stage.seconds = state, why, seconds
        print(f"  -- {state} after {seconds:.0f} s{f': {why}' if why else ''}", flush=True)
        self.write()

    def log(self, text: str) -> None:
        """Append what a stage printed."""
        self._written("log.txt", lambda path: _append(path, text))

    def write(self) -> None:
        """The files, whole, as far as things are."""
        self._written("results.json", lambda path: write_text(path, json.dumps(self.to_json(), indent=1)))
        self._written("results.md", lambda path: write_text(path, self.markdown()))

    def _written(self, name: str, write: Any) -> None:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            write(self.out / name)
        except OSError as error:
            if not self.trouble:
                self.trouble = f"{self.out / name}: cannot be written: {error.strerror}; results are printed only"
                print(f"  !! {self.trouble}", flush=True)

    def to_json(self) -> dict[str, Any]:
        return {
            "command": self.command, "started": self.started, "small": self.small,
            "stages": [
                {"stage": s.name, "state": s.state or "running", "why": s.why, "seconds": round(s.seconds, 1),
                 "rows": [finite(row.to_json()) for row in s.rows]}
                for s in self.stages
            ],
        }  # fmt: skip

    def markdown(self) -> str:
        """The table: a line for each stage's ending, and one for each of its rows."""
        lines = [f"`{self.command}`, {self.started}", ""]
        if self.small:
            lines += ["Small numbers: a rehearsal, which shows that the stages run, not how fast.", ""]
        lines += ["| stage | what | value | aim | | note |", "|---|---|---|---|---|---|"]
        for stage in self.stages:
            ending = stage.state or "running"
            lines.append(f"| **{stage.name}** | *{ending}* | {stage.seconds:.0f} s | | | {cell(stage.why)} |")
            for row in stage.rows:
                value = f"{shown(row.value)} {row.unit}".strip()
                lines.append(
                    f"| | {cell(row.what)} | {cell(value)} | {row.aim} | {SIGNS[row.reached]} | {cell(row.note)} |"
                )
        return "\n".join(lines) + "\n"


def shown(value: float | str | None) -> str:
    """A number with as many digits as mean something."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e7:
        return str(int(value))
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def cell(text: str) -> str:
    """Text that stays within its cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "/")


def finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: such a value becomes text."""
    value = row["value"]
    return {**row, "value": str(value)} if isinstance(value, float) and not math.isfinite(value) else row


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
