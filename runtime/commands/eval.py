"""What `runtime eval` and `trainer eval` share: their options, and what they print and write."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.files.write import write_text

if TYPE_CHECKING:
    from runtime.datasets.annotations import CocoDataset
    from runtime.evaluation.details import Measurement
    from runtime.evaluation.evaluate import Evaluation

EXPLANATION = """what is printed:
  mAP, AP50 ..  COCO's box metrics in points. Then each class at its recommended threshold: the score with the
                best F1, or the lowest that reaches --precision. docs/evaluation.md says what to look at."""


def measurement_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say what to measure and where to write it."""
    parser.add_argument(
        "--protocol", choices=("coco", "voc07", "voc12"), default="coco",
        help="whose AP the table of classes has: COCO's (default), Pascal VOC's of 2007 (11 points) or 2012 (area)",
    )  # fmt: skip
    max_dets_argument(parser)
    parser.add_argument(
        "--precision", type=_share, metavar="P",
        help="recommend the thresholds that reach this precision, as 0.9 (default: those with the best F1)",
    )  # fmt: skip
    parser.add_argument(
        "--buckets", type=_buckets, default=(), metavar="NAME:LOW-HIGH,...",
        help="AP by object size: root of the area in pixels, as tiny:0-16,small:16-32,rest:32-inf",
    )  # fmt: skip
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write report.html there: curves, confusion matrix, worst images"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")


def max_dets_argument(parser: argparse.ArgumentParser) -> None:
    """`--max-dets`, for every command that scores."""
    parser.add_argument(
        "--max-dets", type=_most_detections, default=(100,), metavar="N,N,...",
        help="detections of a class in an image that COCO's metrics look at: the numbers are those at the last, mAP is "
        "given at each; RF100-VL has 100,500 (default: 100, as COCO has it)",
    )  # fmt: skip


def conclude(arguments: argparse.Namespace, evaluation: Evaluation, dataset: CocoDataset, title: str) -> Measurement:
    """Measure as `arguments` say, print the table, write what was asked for."""
    from runtime.evaluation.details import measure

    measurement = measure(evaluation, dataset, arguments.protocol, arguments.precision, arguments.buckets)
    print(measurement.table())
    if arguments.json is not None:
        write_text(arguments.json, json.dumps(measurement.to_json(), indent=1, ensure_ascii=False) + "\n")
        print(f"wrote {arguments.json}")
    if arguments.report is not None:
        from runtime.evaluation.report import write_report

        print(f"wrote {write_report(measurement, arguments.report, title)}")
    return measurement


def warn_of_problems(dataset: CocoDataset) -> None:
    """Say on stderr what was left out of the annotations."""
    if summary := dataset.problems.summary():
        print(f"warning: {dataset.annotations}: {summary}", file=sys.stderr)


def _most_detections(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or numbers[0] < 1 or list(numbers) != sorted({*numbers}):
        raise argparse.ArgumentTypeError(f"expected rising whole numbers of at least 1, as 100,500; got {text!r}")
    return numbers


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a precision above 0 and at most 1, got {text!r}")
    return value


def _buckets(text: str) -> object:
    from runtime.evaluation.sizes import parse_buckets

    try:
        return parse_buckets(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("buckets: ")) from None
