"""What the commands of `exporter` share: the checkpoint they take, the gate's options, the progress bar."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from export.options import Gate
    from export.verification.gate import GateError


def gate_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say on what an artifact is scored and what it may lose."""
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="POINTS",
        help="mAP points that may be lost (default: fp32 0.1, fp16 0.2, int8 1.0)",
    )
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", help="of any format (default: the run's validation data)"
    )
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="folder of its pictures")


def gate_of(arguments: argparse.Namespace) -> Gate:
    """The gate that `gate_arguments` and a --no-verify ask for."""
    from export.options import Gate

    return Gate(not arguments.no_verify, arguments.tolerance, arguments.annotations, arguments.images)


def checkpoint_of(arguments: argparse.Namespace) -> Path:
    """The checkpoint that was named, or the newest run's."""
    from runtime.runs import newest

    checkpoint: Path | None = arguments.checkpoint
    if checkpoint is None:
        checkpoint = newest("best.pt", runs=arguments.runs)
        print(f"checkpoint: {checkpoint} (the newest run's)")
    return checkpoint


def print_refusal(error: GateError) -> None:
    """Show why an artifact was not written, and keep the report: `<name>.refused.html`, beside an older one."""
    from export.verification.report import write_reports

    out = error.verification.artifacts[0].path
    print(error.verification.table())
    bisections = [] if error.bisection is None else [error.bisection]
    for bisection in bisections:
        print(bisection.text())
    for path in write_reports(error.verification, out.parent, f"{out.stem}.refused", bisections):
        print(f"wrote {path}")


class Bar:
    """A progress bar for each thing that is done, one after the other, and lines that stay above it."""

    def __init__(self, quiet: bool):
        self.quiet = quiet
        self.what = ""
        self.bar: tqdm[Any] | None = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def progress(self, what: str, done: int, total: int, unit: str = "image") -> None:
        if self.bar is None or what != self.what or done < self.bar.n:  # whose rate and time left are its own
            self.close()
            self.what, self.bar = what, tqdm(desc=what, total=total, unit=unit, disable=self.quiet, leave=False)
        self.bar.n = done
        self.bar.refresh()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def say(self, line: str) -> None:
        tqdm.write(line)
