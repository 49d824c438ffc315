"""The command `trainer`. Each of its commands is thin over one function."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from runtime.commands.shared import exit_status, moves, teaching, words
from trainer.commands.data import (
    CONVERT,
    IMPORT,
    MINE_NEGATIVES,
    NEW,
    convert_arguments,
    convert_data,
    import_arguments,
    import_theirs,
    mine_arguments,
    mine_negatives,
    new,
    new_arguments,
)
from trainer.commands.eval import evaluation, evaluation_arguments
from trainer.commands.runs import runs, runs_arguments

_EXAMPLES = """examples:
  trainer new digits                               a small data set and its recipe, digits/digits.yaml
  trainer new my.yaml --train train.json --train-images train/ --val val.json --val-images val/
  trainer new my.yaml --train data.yaml --val data.yaml
  trainer convert voc/ --to coco --out train.json  between COCO, Pascal VOC, YOLO and a JSON list
  trainer check-data my.yaml                       counts, box sizes, broken entries, a sheet of samples
  trainer check-data my.yaml --augment             the same, and what each augmentation does to your pictures
  trainer show my.yaml optim.lr=0.002              the whole configuration as it would run
  trainer show --schema > config.schema.json       every key, for editors that complete and check YAML
  trainer lr-find my.yaml                          a learning rate to start from, with a plot
  trainer fit my.yaml schedule.epochs=50           train; outputs in runs/<name>/
  trainer fit --resume                             go on with the newest interrupted run
  trainer fit --qat runs/my/best.pt                train it on as 8 bits, for exporter onnx
  torchrun --nproc-per-node 4 -m trainer fit my.yaml    on four GPUs
  trainer runs                                     what was trained: scores, state, time, data
  trainer eval                                     COCO mAP of the newest run's best.pt
  trainer mine-negatives --out negatives.json      false positives, for augment.hard_negatives
  trainer import fcos.pth --out fcos.pt            a checkpoint of torchvision or mmdetection as isodet's

Any key of a config can be set on the command line as key.sub=value; `trainer show` prints them all.
exit status: 0 done, 1 the work failed, 2 wrong usage"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's). Returns the exit status; wrong usage exits with 2."""
    arguments = _parse(argv)
    # The training itself says more; this is before it, or a second Ctrl-C.
    advice = "; what a run saved, `trainer fit --resume RUN` goes on from" if arguments.command == "fit" else ""
    return exit_status(arguments, "trainer", "train", f"interrupted{advice}")


def _fit(arguments: argparse.Namespace) -> int:
    from trainer.config_reader import qat_config, read_config
    from trainer.loop import fit
    from trainer.run.folder import find_resumable

    if arguments.config is not None and "=" in str(arguments.config):  # no CONFIG, and a key=value in its place
        arguments.overrides.insert(0, str(arguments.config))
        arguments.config = None
    if arguments.resume is None and arguments.config is None and arguments.qat is None:
        arguments.parser.error("name a CONFIG, or give --resume or --qat")
    if arguments.resume is not None and arguments.qat is not None:
        arguments.parser.error("--resume goes on with the run's own configuration, 8 bits included: no --qat")
    if arguments.resume is not None and (arguments.config is not None or arguments.overrides):
        arguments.parser.error("--resume goes on with the run's own configuration: no CONFIG and no key=value")
    if arguments.changed_data and arguments.resume is None:
        arguments.parser.error("--changed-data is for --resume")
    resume = None
    main_process = os.environ.get("RANK", "0") == "0"  # torchrun's: one of several speaks
    if arguments.resume is not None:
        resume = find_resumable(arguments.resume or None, arguments.runs, arguments.changed_data)
        config = resume.config
        if main_process:
            print(f"resuming {resume.run}: {resume.where}")
    elif arguments.config is None:
        config = qat_config(arguments.qat, arguments.overrides)
    else:
        qat = [] if arguments.qat is None else [f"init={json.dumps(str(arguments.qat))}", "qat={}"]
        config = read_config(arguments.config, [*qat, *arguments.overrides])
    result = fit(config, arguments.runs, resume, arguments.quiet)
    if not main_process:
        return 0
    print(f"best mAP {result.best_map:.1f}; wrote {result.run}/")
    for name, what in (
        ("best.pt", "the detector; next: exporter onnx --simplify"),
        ("last.pt", "the end of training"),
        ("report.html", "plots, scores, validation pictures"),
        ("metrics.csv", "the numbers of every epoch"),
        ("tensorboard/", f"tensorboard --logdir {result.run}"),
    ):
        print(f"  {name:<13} {what}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from trainer.config.reference import config_markdown
    from trainer.config.schema import config_schema
    from trainer.config.train import dump_config
    from trainer.config_reader import read_config

    if arguments.schema or arguments.markdown:
        print(config_markdown() if arguments.markdown else json.dumps(config_schema(), indent=1) + "\n", end="")
        return 0
    if arguments.config is None:
        arguments.parser.error("name a CONFIG, or give --schema or --markdown")
    print(dump_config(read_config(arguments.config, arguments.overrides)), end="")
    return 0


def _check_data(arguments: argparse.Namespace) -> int:
    from trainer.check.data import check_data
    from trainer.config_reader import read_config

    config = read_config(arguments.config, arguments.overrides)
    with tqdm(unit="image", disable=arguments.quiet) as bar:
        report = check_data(config, arguments.out, moves(bar), arguments.augment)
    print(report.text())
    return 0


def _lr_find(arguments: argparse.Namespace) -> int:
    from trainer.config_reader import read_config
    from trainer.lr_find import find_lr, plot_range_test

    config = read_config(arguments.config, arguments.overrides)
    with tqdm(unit="step", disable=arguments.quiet) as bar:
        result = find_lr(config, arguments.low, arguments.high, arguments.steps, progress=moves(bar))
    ended = f"diverged at {result.diverged:.2g}" if result.diverged else f"did not diverge up to {arguments.high:g}"
    print(f"loss falls fastest at {result.steepest:.2g}, {ended}\nwrote {plot_range_test(result, arguments.out)}\n"
          f"next: trainer fit {shlex.join([str(arguments.config), *arguments.overrides])} "
          f"optim.lr={result.suggestion:.2g}")  # fmt: skip
    return 0


# ---------------------------------------------------------------------------------------------
# arguments


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """argparse takes no positionals after an option; key=value may stand anywhere on our command lines."""
    parser = _parser()
    given = words(parser, argv)
    for i in reversed([i for i, text in enumerate(given) if text == "--augment"]):
        if given[i + 1 : i + 2] not in ([], ["on"], ["all"]):  # CONFIG or a key=value, which is not its word
            given.insert(i + 1, "on")
    arguments, rest = parser.parse_known_args(given)
    overrides = [text for text in rest if "=" in text and not text.startswith("-")]
    if rest != overrides or (rest and not hasattr(arguments, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += overrides
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trainer", formatter_class=teaching, epilog=_EXAMPLES,
        description="Train ATSS, RetinaNet and FCOS detectors from one YAML file.",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: object, short: str, description: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=short, description=description, formatter_class=teaching)
        sub.set_defaults(run=run, parser=sub)
        sub.add_argument("--quiet", action="store_true", help="no progress line")
        return sub

    def config(sub: argparse.ArgumentParser, optional: bool = False) -> None:
        sub.add_argument("config", nargs="?" if optional else None, type=Path, metavar="CONFIG", help="YAML file")
        sub.add_argument("overrides", nargs="*", metavar="key=value", help="set keys, as in optim.lr=0.002")

    runs_help = "folder of the runs (default: runs)"
    sub = command("fit", _fit, "train a detector", "Train the detector that CONFIG describes; outputs in runs/<name>/.")
    config(sub, optional=True)
    sub.add_argument(
        "--resume", nargs="?", const="", metavar="RUN",
        help="go on with an interrupted run: its folder or last.pt; alone, the newest unfinished one",
    )  # fmt: skip
    sub.add_argument(
        "--qat", type=Path, metavar="BEST.pt",
        help="train this checkpoint on as 8 bits; without CONFIG as it was trained, for a fifth of the epochs",
    )  # fmt: skip
    sub.add_argument(
        "--changed-data", action="store_true",
        help="with --resume: go on although an annotation file changed; the interrupted epoch starts again",
    )  # fmt: skip
    sub.add_argument("--runs", type=Path, default=Path("runs"), help=runs_help)

    sub = command(
        "eval", evaluation, "measure a checkpoint: mAP, thresholds, confusions",
        "Score a checkpoint on its validation data, or on yours.",
    )  # fmt: skip
    evaluation_arguments(sub)
    sub.add_argument("--runs", type=Path, default=Path("runs"), help=runs_help)

    runs_arguments(command("runs", runs, "list the runs", "List the runs in FOLDER: scores, state, time, data."))

    sub = command("show", _show, "print the resolved config", "Print CONFIG with its _base_, overrides and defaults.")
    config(sub, optional=True)
    of_all = sub.add_mutually_exclusive_group()
    of_all.add_argument("--schema", action="store_true", help="print a JSON Schema of every key instead, for editors")
    of_all.add_argument(
        "--markdown", action="store_true", help="print docs/config.md instead, which explains every key"
    )

    sub = command(
        "check-data", _check_data, "look at a data set before training on it",
        "Decode every picture, count what is there, list what is broken, draw samples with their boxes.",
    )  # fmt: skip
    config(sub)
    sub.add_argument("--out", type=Path, default=Path("data-check"), help="folder for pictures (default: data-check)")
    sub.add_argument(
        "--augment", nargs="?", const="on", choices=("on", "all"),
        help="draw each augmentation that is on in CONFIG, before and after; all: each there is",
    )  # fmt: skip

    sub = command("mine-negatives", mine_negatives, "collect false positives to train against", MINE_NEGATIVES)
    mine_arguments(sub)

    sub = command(
        "lr-find", _lr_find, "look for a learning rate",
        "Train some steps at rising rates (Smith, 2015) and plot the loss. Suggests the rate at which it falls\n"
        "fastest, or a tenth of the one at which it diverged where that is lower. Leaves a picture and no run.",
    )  # fmt: skip
    config(sub)
    sub.add_argument("--low", type=float, default=1e-6, metavar="LR", help="first rate (default: 1e-6)")
    sub.add_argument("--high", type=float, default=1.0, metavar="LR", help="last rate (default: 1)")
    sub.add_argument("--steps", type=int, default=100, metavar="N", help="optimiser steps (default: 100)")
    sub.add_argument("--out", type=Path, default=Path("lr-find.png"), help="picture (default: lr-find.png)")

    sub = command("new", new, "start from a recipe or from your annotations", NEW)
    new_arguments(sub)
    sub = command("convert", convert_data, "a data set from one format into another", CONVERT)
    convert_arguments(sub)
    sub = command("import", import_theirs, "take over a checkpoint of torchvision or mmdetection", IMPORT)
    import_arguments(sub)
    return parser


if __name__ == "__main__":
    sys.exit(main())
