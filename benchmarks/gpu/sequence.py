"""Runs the stages one after another, each in a process of its own that has its own time.

A stage that fails, hangs, crashes or finds a package missing costs its own time and nothing else.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any

from benchmarks.gpu.report import Report, StageReport
from benchmarks.gpu.stage import Row, Stage, State, one_line

LEAST_SECONDS = 5.0
"""With less time than this no stage is begun."""
GRACE = 3.0
"""Seconds before its limit at which a stage is told to be through by itself."""
ROW_FIELDS = tuple(f.name for f in fields(Row))


@dataclass(frozen=True)
class Conditions:
    """How stages are run."""

    device: str
    small: bool
    work: Path
    ends: float
    """By `time.monotonic`, of the whole sequence."""
    environment: Mapping[str, str]


def run_stages(stages: Sequence[Stage], how: Conditions, report: Report) -> None:
    """Run `stages` in their order until `how.ends`; what they give goes to `report`."""
    for stage in stages:
        entry = report.begin(stage)
        left = how.ends - time.monotonic()
        limit = min(stage.seconds, left)
        if limit < LEAST_SECONDS:
            report.end(entry, "not run", f"{max(left, 0):.0f} s were left", 0.0)
            continue
        started = time.monotonic()
        state, why = run_stage(stage, how, limit, report, entry)
        report.end(entry, state, why, time.monotonic() - started)


def run_stage(stage: Stage, how: Conditions, limit: float, report: Report, entry: StageReport) -> tuple[State, str]:
    """How the stage ended, and why not well."""
    rows_end, child_end = os.pipe()
    command = [sys.executable, "-m", "benchmarks.gpu.child", stage.module, "--channel", str(child_end), "--device",
               how.device, "--work", str(how.work), "--seconds", str(max(1.0, limit - GRACE))]  # fmt: skip
    process = subprocess.Popen(
        [*command, *(["--small"] if how.small else [])], pass_fds=(child_end,), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, env=dict(how.environment),
        text=True, errors="replace", bufsize=1,
    )  # fmt: skip
    os.close(child_end)
    said: list[tuple[str, str]] = []
    last: deque[str] = deque(maxlen=20)
    assert process.stdout is not None
    readers = [
        threading.Thread(
            target=read_rows, args=(os.fdopen(rows_end, encoding="utf-8"), report, entry, said), daemon=True
        ),
        threading.Thread(target=read_log, args=(process.stdout, report, stage.name, last), daemon=True),
    ]
    for reader in readers:
        reader.start()
    hung = False
    try:
        process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        hung = True
    kill_group(process)
    try:
        status = process.wait(timeout=10)
    except subprocess.TimeoutExpired:  # waits for the driver, where no signal reaches it
        return "over time", f"killed after {limit:.0f} s, and it does not end: the driver holds it"
    for reader in readers:
        reader.join(timeout=5)
    if hung:
        return "over time", f"killed after {limit:.0f} s"
    if said:
        kind, text = said[-1]
        states: dict[str, State] = {"done": "done", "not here": "not here", "failed": "failed"}
        return states[kind], text
    how_it_ended = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
    return "failed", f"its process ended with {how_it_ended}; the last it said: {last[-1] if last else 'nothing'}"


def read_rows(channel: IO[str], report: Report, entry: StageReport, said: list[tuple[str, str]]) -> None:
    """Rows to the report; the stage's own word on its ending to `said`."""
    with channel:
        for line in channel:
            message: dict[str, Any] = json.loads(line)
            ((kind, content),) = message.items()
            if kind == "row":
                report.add(entry, Row(**{name: content[name] for name in ROW_FIELDS}))
            else:
                said.append((kind, content))


def read_log(output: IO[str], report: Report, name: str, last: deque[str]) -> None:
    with output:
        for line in output:
            if line.strip():
                last.append(one_line(line))
            report.log(f"[{name}] {line}")


def kill_group(process: subprocess.Popen[str]) -> None:
    """End the process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it has ended, and left nothing behind
