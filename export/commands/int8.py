"""Options of 8 bits, and `exporter sensitivity`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from export.commands.gate import Bar, checkpoint_of

if TYPE_CHECKING:
    from export.options import Int8

SENSITIVITY = """Rank the layers of a checkpoint by what each costs when it alone is 8 bits.

All layers are ranked by how far they move the network's outputs, which is fast; the mAP is measured for the worst.
`exporter onnx --int8 --keep-mAP 0.5` uses the same ranking to put layers back to float."""


def calibration_arguments(parser: argparse.ArgumentParser, choices: tuple[str, ...]) -> None:
    """Options that say how ranges of activations are found."""
    group = parser.add_argument_group("8 bits")
    group.add_argument(
        "--calibrate", choices=choices, default="mse",
        help="how ranges follow from what was observed; best: the one with the highest validation mAP (default: mse)"
        if "best" in choices else "how ranges follow from what was observed (default: mse)",
    )  # fmt: skip
    group.add_argument(
        "--calibration", type=Path, metavar="DATA", help="pictures to observe (default: the training set)"
    )
    group.add_argument(
        "--calibration-images", type=Path, metavar="FOLDER", help="their folder; alone: every picture in it"
    )
    group.add_argument(
        "--calibration-count", type=int, default=512, metavar="N", help="how many are observed (default: 512)"
    )
    group.add_argument("--ranges", type=Path, metavar="FILE", help="take the ranges of an earlier export instead")


def int8_arguments(parser: argparse.ArgumentParser, engine: bool = False) -> None:
    """What a command that writes 8 bits takes; an engine has no form for CPUs and a float16 rest."""
    calibration_arguments(parser, ("minmax", "percentile", "mse", "entropy", "best"))
    if not engine:
        parser.add_argument(
            "--cpu", action="store_true", help="with --int8: the form that is fast on a CPU, a file of its own"
        )
        parser.add_argument("--half", action="store_true", help="with --int8: float16 in what stays float, for GPUs")
    parser.add_argument(
        "--keep-mAP", dest="keep_map", type=float, metavar="POINTS",
        help="with --int8: put the worst layers back to float until no more mAP points are lost",
    )  # fmt: skip
    parser.add_argument(
        "--float-layer", action="append", default=[], metavar="NAME",
        help="with --int8: a convolution that stays in float; may be repeated",
    )  # fmt: skip


def int8_of(arguments: argparse.Namespace, wanted: bool = True, engine: bool = False) -> Int8 | None:
    """What `int8_arguments` ask for; None where 8 bits are not wanted. Raises `CalibrationError` where they are not and
    are spoken of all the same.
    """
    from export.options import CalibrationError, Int8

    options = Int8(
        arguments.calibrate, arguments.calibration_count, arguments.calibration, arguments.calibration_images,
        arguments.ranges, getattr(arguments, "cpu", False), getattr(arguments, "half", engine),
        getattr(arguments, "keep_map", None), tuple(getattr(arguments, "float_layer", ())),
    )  # fmt: skip
    if not wanted and options != Int8(half=engine):
        raise CalibrationError.of("int8", "options of 8 bits were given, and 8 bits were not asked for; add --int8")
    return options if wanted else None


def sensitivity_arguments(parser: argparse.ArgumentParser) -> None:
    """What `exporter sensitivity` takes."""
    parser.add_argument("checkpoint", nargs="?", type=Path, help="default: the newest run's best.pt")
    parser.add_argument(
        "--count", type=int, default=32, metavar="N", help="pictures for the output error (default: 32)"
    )
    parser.add_argument("--map-count", type=int, default=100, metavar="N", help="pictures for the mAP (default: 100)")
    parser.add_argument("--map-layers", type=int, default=8, metavar="N", help="how many get a mAP (default: 8)")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="of the table and the plot (default: the checkpoint's)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", help="of any format (default: the run's validation data)"
    )
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="folder of its pictures")
    calibration_arguments(parser, ("minmax", "percentile", "mse", "entropy"))


def sensitivity(arguments: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    from export.int8 import sensitivity as ranking

    checkpoint = checkpoint_of(arguments)
    with Bar(arguments.quiet) as bar:
        result = ranking.sensitivity(
            checkpoint, int8_of(arguments), arguments.count, arguments.map_count, arguments.map_layers,
            arguments.annotations, arguments.images, bar.say, bar.progress,
        )  # fmt: skip
    print(result.table())
    for path in ranking.write_sensitivity(result, arguments.out or checkpoint.parent, f"{checkpoint.stem}.sensitivity"):
        print(f"wrote {path}")
    return 0
