"""Train ATSS, RetinaNet, FCOS, GFL (both versions) and TOOD detectors from one YAML file.

examples:
  trainer new digits                               a small data set and its recipe, digits/digits.yaml
  trainer new my.yaml --train train.json --train-images train/ --val val.json --val-images val/
  trainer new my.yaml --train data.yaml --val data.yaml
  trainer convert voc/ --to coco --out train.json  between COCO, Pascal VOC, YOLO and a JSON list
  trainer check-data my.yaml                       counts, box sizes, broken entries, a sheet of samples
  trainer check-data my.yaml --json --strict       its findings for scripts; exit status 1 for an error or a warning
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
  trainer weights                                  ImageNet weights to start from, and which are here
  trainer import fcos.pth --out fcos.pt            a checkpoint of torchvision or mmdetection as isodet's

Any key of a config can be set on the command line as key.sub=value; `trainer show` prints them all.
exit status: 0 done, 1 the work failed, 2 wrong usage
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from runtime.commands.arguments import command_parser
from runtime.commands.shared import exit_status, require_arguments
from trainer.commands.config import CheckData, Fit, LrFind, Show
from trainer.commands.data import Convert, Import, MineNegatives, New
from trainer.commands.eval import Eval
from trainer.commands.runs import Runs
from trainer.commands.weights import Weights


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's). Returns the exit status; wrong usage exits with 2."""
    arguments = _parse(argv)
    # An interrupted training has a message of its own; this one is for before it, and for a second Ctrl-C.
    advice = "; what a run saved, `trainer fit --resume RUN` goes on from" if arguments.command == "fit" else ""
    return exit_status(arguments, "trainer", "train", f"interrupted{advice}")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse `argv`. argparse takes no positionals after an option, but key=value may stand anywhere on ours."""
    parser = command_parser("trainer", __doc__, {
        "fit": Fit, "eval": Eval, "runs": Runs, "show": Show, "check-data": CheckData, "mine-negatives": MineNegatives,
        "lr-find": LrFind, "new": New, "convert": Convert, "import": Import, "weights": Weights,
    })  # fmt: skip
    words = require_arguments(parser, argv)
    for i in reversed([i for i, text in enumerate(words) if text == "--augment"]):
        if words[i + 1 : i + 2] not in ([], ["on"], ["all"]):  # CONFIG or a key=value, not a value of --augment
            words.insert(i + 1, "on")
    arguments, rest = parser.parse_known_args(words)
    overrides = [text for text in rest if "=" in text and not text.startswith("-")]
    if rest != overrides or (rest and not hasattr(arguments, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *overrides]
    if arguments.command == "fit" and "=" in str(arguments.config):  # no CONFIG, and a key=value in its place
        arguments.overrides, arguments.config = [str(arguments.config), *arguments.overrides], None
    return arguments


if __name__ == "__main__":
    sys.exit(main())
