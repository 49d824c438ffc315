"""The commands that take a config: `trainer fit`, `show`, `check-data` and `lr-find`."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

from tqdm import tqdm

from runtime.commands.arguments import flag
from runtime.commands.shared import Quiet, Runs, updates

if TYPE_CHECKING:
    from trainer.config.train import TrainConfig


def comparing(quiet: bool) -> tqdm[NoReturn]:
    """The progress bar of a search for near-duplicates. It appears where the search takes longer than two seconds."""
    return tqdm(desc="comparing", unit="step", disable=quiet, delay=2, leave=False)


@dataclass(frozen=True, kw_only=True)
class Overrides(Quiet):
    """overrides: set keys, as in optim.lr=0.002"""

    overrides: Annotated[tuple[str, ...], flag("overrides", metavar="key=value")] = ()


@dataclass(frozen=True, kw_only=True)
class Configured(Overrides):
    """config: YAML file"""

    config: Annotated[Path, flag("config", metavar="CONFIG")]

    def read(self) -> TrainConfig:
        from trainer.config_reader import read_config

        return read_config(self.config, self.overrides)


@dataclass(frozen=True, kw_only=True)
class Fit(Overrides, Runs):
    """Train the detector that CONFIG describes.

    Outputs are in runs/<name>/.

    config: YAML file
    resume: go on with an interrupted run: its folder or last.pt; alone, the newest unfinished one
    qat: train this checkpoint on as 8 bits; without CONFIG as it was trained, for a fifth of the epochs
    changed_data: with --resume: go on although an annotation file changed; the interrupted epoch starts again
    """

    config: Annotated[Path | None, flag("config", metavar="CONFIG")] = None
    resume: Annotated[str | None, flag(nargs="?", const="", metavar="RUN")] = None
    qat: Annotated[Path | None, flag(metavar="BEST.pt")] = None
    changed_data: bool = False

    def __post_init__(self) -> None:
        if self.resume is None and self.config is None and self.qat is None:
            raise ValueError("name a CONFIG, or give --resume or --qat")
        if self.resume is not None and self.qat is not None:
            raise ValueError("--resume goes on with the run's own configuration, 8 bits included: no --qat")
        if self.resume is not None and (self.config is not None or self.overrides):
            raise ValueError("--resume goes on with the run's own configuration: no CONFIG and no key=value")
        if self.changed_data and self.resume is None:
            raise ValueError("--changed-data is for --resume")

    def run(self) -> int:
        from trainer.config_reader import qat_config, read_config
        from trainer.loop import fit
        from trainer.run.folder import find_resumable

        resume = None
        main_process = os.environ.get("RANK", "0") == "0"  # torchrun sets it; one of several processes prints
        if self.resume is not None:
            resume = find_resumable(self.resume or None, self.runs, self.changed_data)
            config = resume.config
            if main_process:
                print(f"resuming {resume.run}: {resume.where}")
        elif self.config is not None:
            qat = [] if self.qat is None else [f"init={json.dumps(str(self.qat))}", "qat={}"]
            config = read_config(self.config, [*qat, *self.overrides])
        elif self.qat is not None:
            config = qat_config(self.qat, self.overrides)
        result = fit(config, self.runs, resume, self.quiet)
        if not main_process:
            return 0
        print(f"best mAP {result.best_map:.1f}; wrote {result.run}/")
        for name, content in (
            ("best.pt", "the detector; next: exporter onnx --simplify"),
            ("last.pt", "the end of training"),
            ("report.html", "plots, scores, validation pictures"),
            ("metrics.csv", "the numbers of every epoch"),
            ("tensorboard/", f"tensorboard --logdir {result.run}"),
        ):
            print(f"  {name:<13} {content}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Show(Overrides):
    """Print CONFIG with its _base_, overrides and defaults.

    config: YAML file
    schema: print a JSON Schema of every key instead, for editors
    markdown: print docs/config.md instead, which explains every key
    """

    config: Annotated[Path | None, flag("config", metavar="CONFIG")] = None
    schema: bool = False
    markdown: bool = False

    def __post_init__(self) -> None:
        if (self.config is not None) + self.schema + self.markdown != 1:
            raise ValueError("name a CONFIG, or give --schema or --markdown")

    def run(self) -> int:
        from trainer.config.reference import config_markdown
        from trainer.config.schema import config_schema
        from trainer.config.train import dump_config
        from trainer.config_reader import read_config

        if self.config is not None:
            print(dump_config(read_config(self.config, self.overrides)), end="")
        elif self.markdown:
            print(config_markdown(), end="")
        else:
            print(json.dumps(config_schema(), indent=1))
        return 0


@dataclass(frozen=True, kw_only=True)
class CheckData(Configured):
    """Look at a data set before training on it.

    Decodes every picture, counts what is there, lists what is broken or doubtful, draws samples with their boxes. Finds
    pictures that look the same in train and in val, boxes that are too small at the input, rare classes, boxes that are
    there twice, and more: docs/data.md lists every finding. An error is a picture that is lost, or one that is in train
    and in val. A warning is probably a mistake. A note is a fact.

    out: folder for pictures
    augment: draw each augmentation that is on in CONFIG, before and after; all: each there is
    json: print the findings alone, as JSON: a list of {id, severity, split, count, text, examples, advice}
    strict: exit with 1 for warnings, too

    examples:
      trainer check-data my.yaml                      in words
      trainer check-data my.yaml --json | jq -r '.[] | select(.severity != "note") | .id'
      trainer check-data my.yaml --json --strict --quiet > findings.json || exit 1     a step of a CI script

    exit status: 0 no error (with --strict: no warning either), 1 an error, or data that cannot be read, 2 wrong usage
    """

    out: Path = Path("data-check")
    augment: Annotated[Literal["on", "all"] | None, flag(nargs="?", const="on")] = None
    json: bool = False
    strict: bool = False

    def run(self) -> int:
        from trainer.check.data import check_data
        from trainer.check.findings import exit_code, summary

        config = self.read()
        with tqdm(unit="image", disable=self.quiet) as bar, comparing(self.quiet) as steps:
            report = check_data(config, self.out, updates(bar), self.augment, updates(steps))
        if self.json:
            print(json.dumps([finding.to_json() for finding in report.findings], indent=1))
            print(summary(report.findings), file=sys.stderr)
        else:
            print(report.text())
        return exit_code(report.findings, self.strict)


@dataclass(frozen=True, kw_only=True)
class LrFind(Configured):
    """Look for a learning rate.

    Trains some steps at rising rates (Smith, 2015) and plots the loss. Suggests the rate at which it falls fastest, or
    a tenth of the one at which it diverged where that is lower. Leaves a picture and no run.

    low: first rate
    high: last rate
    steps: optimizer steps
    out: picture
    """

    low: Annotated[float, flag(metavar="LR")] = 1e-6
    high: Annotated[float, flag(metavar="LR")] = 1.0
    steps: Annotated[int, flag(metavar="N")] = 100
    out: Path = Path("lr-find.png")

    def run(self) -> int:
        from trainer.lr_find import find_lr, plot_range_test

        config = self.read()
        with tqdm(unit="step", disable=self.quiet) as bar:
            result = find_lr(config, self.low, self.high, self.steps, progress=updates(bar))
        ended = f"diverged at {result.diverged:.2g}" if result.diverged else f"did not diverge up to {self.high:g}"
        print(
            f"loss falls fastest at {result.steepest:.2g}, {ended}\nwrote {plot_range_test(result, self.out)}\n"
            f"next: trainer fit {shlex.join([str(self.config), *self.overrides])} "
            f"optim.lr={result.suggestion:.2g}"
        )
        return 0
