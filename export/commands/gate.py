"""What the commands of `exporter` share: the gate's options, the progress bar, printing of reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tqdm import tqdm

from export.options import Candidates, Gate
from runtime.commands.arguments import flag, number
from runtime.commands.shared import OfRun, Quiet

if TYPE_CHECKING:
    from export.verification.gate import GateError
    from export.verification.verify import Verification

DATA = {"tolerance": flag(metavar="POINTS"), "annotations": flag(metavar="FILE"), "images": flag(metavar="FOLDER")}


_at_least_1 = number("auto, config or a whole number of at least 1", lambda value: value >= 1, int)


def _candidates(text: str) -> Candidates:
    words: dict[str, Candidates] = {"auto": "auto", "config": "config"}
    return words[text] if text in words else _at_least_1(text)


CANDIDATES = flag(metavar="auto|config|N", type=_candidates)
NO_VERIFY = flag(help="do not score it; the card will say so")
OF_ONNX = {**DATA, "openvino_precision": flag()}
"""The gate of ONNX files, which other engines read as well."""


@dataclass(frozen=True, kw_only=True)
class Gated(OfRun, Quiet):
    """The options of a command that writes an artifact if it passes the gate."""

    gate: Annotated[Gate, {"verify": NO_VERIFY, **DATA}] = Gate()


def print_reports(verification: Verification, path: Path) -> None:
    """Print the scores of the artifact at `path`, and write the reports beside it."""
    from export.verification.report import write_reports

    print(verification.table())
    for report in write_reports(verification, path.parent, f"{path.stem}.verify"):
        print(f"wrote {report}")


def print_refusal(error: GateError) -> None:
    """Print why an artifact was not written, and write the report `<name>.refused.html`."""
    from export.verification.report import write_reports

    out = error.verification.artifacts[0].path
    print(error.verification.table())
    bisections = [] if error.bisection is None else [error.bisection]
    for bisection in bisections:
        print(bisection.text())
    for path in write_reports(error.verification, out.parent, f"{out.stem}.refused", bisections):
        print(f"wrote {path}")


class Bar:
    """A progress bar for the current task, and lines that stay above it."""

    def __init__(self, quiet: bool):
        self.quiet = quiet
        self.task = ""
        self.bar: tqdm[Any] | None = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def progress(self, task: str, done: int, total: int) -> None:
        if self.bar is None or task != self.task or done < self.bar.n:  # a new bar, with its own rate and time left
            self.close()
            unit = "step" if task.startswith("build: ") else "image"
            self.task, self.bar = task, tqdm(desc=task, total=total, unit=unit, disable=self.quiet, leave=False)
        self.bar.n = done
        self.bar.refresh()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def say(self, line: str) -> None:
        tqdm.write(line)
