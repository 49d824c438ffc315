"""The commands that take a config: `trainer fit`, `show`, `check-data` and `lr-find`."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tqdm import tqdm

from runtime.commands.arguments import flag
from runtime.commands.shared import Quiet, Runs, updates

if TYPE_CHECKING:
    from trainer.config.train import TrainConfig


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

    Decodes every picture, counts what is there, lists what is broken, draws samples with their boxes.

    out: folder for pictures
    augment: draw each augmentation that is on in CONFIG, before and after; all: each there is
    """

    out: Path = Path("data-check")
    augment: Annotated[Literal["on", "all"] | None, flag(nargs="?", const="on")] = None

    def run(self) -> int:
        from trainer.check.data import check_data

        config = self.read()
        with tqdm(unit="image", disable=self.quiet) as bar:
            report = check_data(config, self.out, updates(bar), self.augment)
        print(report.text())
        return 0


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
