"""`runtime eval`, and what `trainer eval` shares with it: options and outputs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tqdm import tqdm

from runtime.commands.arguments import count, flag, number
from runtime.commands.shared import MODELS, Data, InTiles, OnDevice, Quiet, chosen, say_tiles, updates, write_json

if TYPE_CHECKING:
    from runtime.datasets.annotations import CocoDataset
    from runtime.evaluation.details import Measurement
    from runtime.evaluation.evaluate import Evaluation


def _buckets(text: str) -> object:
    from runtime.evaluation.sizes import parse_buckets

    return parse_buckets(text)


@dataclass(frozen=True, kw_only=True)
class MaxDets:
    """max_dets: detections of a class in an image that COCO's metrics look at: the numbers are those at the last, mAP
    is given at each; RF100-VL has 100,500 (default: 100, as COCO has it)
    """

    max_dets: Annotated[tuple[int, ...], flag(metavar="N,N,...")] = (100,)

    def __post_init__(self) -> None:
        from runtime.evaluation.evaluate import check_max_dets

        check_max_dets(self.max_dets)


@dataclass(frozen=True, kw_only=True)
class Measuring(MaxDets, Data):
    """What to measure on which data, and where to write it.

    protocol: whose AP the table of classes has: COCO's (default), Pascal VOC's of 2007 (11 points) or 2012 (area)
    precision: recommend the thresholds that reach this precision, as 0.9 (default: those with the best F1)
    buckets: AP by object size: root of the area in pixels, as tiny:0-16,small:16-32,rest:32-inf
    report: write report.html there: curves, confusion matrix, worst images
    json: write the numbers there, too

    what is printed:
      mAP, AP50 ..  COCO's box metrics in points. Then each class at its recommended threshold: the score with the
                    best F1, or the lowest that reaches --precision. docs/evaluation.md says what to look at.
    """

    protocol: Literal["coco", "voc07", "voc12"] = "coco"
    precision: Annotated[
        float | None, flag(metavar="P", type=number("a precision above 0 and at most 1", lambda p: 0 < p <= 1))
    ] = None
    buckets: Annotated[Sequence[Any], flag(metavar="NAME:LOW-HIGH,...", type=_buckets)] = ()
    report: Annotated[Path | None, flag(metavar="DIR")] = None
    json: Annotated[Path | None, flag(metavar="FILE")] = None

    def conclude(self, evaluation: Evaluation, dataset: CocoDataset, title: str) -> Measurement:
        """Measure, print the table, write the requested files."""
        from runtime.evaluation.details import measure

        measurement = measure(evaluation, dataset, self.protocol, self.precision, self.buckets)
        print(measurement.table())
        write_json(self.json, measurement.to_json(), indent=1)
        if self.report is not None:
            from runtime.evaluation.report import write_report

            print(f"wrote {write_report(measurement, self.report, title)}")
        return measurement


def warn_of_problems(dataset: CocoDataset) -> None:
    """Print on stderr which annotations were left out."""
    if summary := dataset.problems.summary():
        print(f"warning: {dataset.annotations}: {summary}", file=sys.stderr)


@dataclass(frozen=True, kw_only=True)
class Eval(Measuring, InTiles, OnDevice, Quiet):
    """Measure a model on annotated pictures, as COCO or VOC does, with a report.

    mAP and its kin, classes, thresholds, confusions.
    (Other ways of merging boxes, --nms and --tta, need a checkpoint: `trainer eval`.)

    artifact: an .onnx, .engine or .pt file (default: the newest run's)
    detections: instead of a model: score a file of COCO results, a list of image_id, category_id, bbox, score
    batch_size: images handed over at once

    examples:
      runtime eval                                     the newest model, on the data it was validated with
      runtime eval best.onnx --annotations val.json --images val/ --json metrics.json
      runtime eval --report report/ --precision 0.9    a page with pictures; thresholds for 9 of 10 right
      runtime eval --tiles auto --tile-overlap 0.3     as detect --tiles finds them: is it worth its time?
      runtime eval --detections results.json --annotations val.json    what another program found
    """

    artifact: Annotated[Path | None, flag("artifact")] = None
    detections: Annotated[Path | None, flag(metavar="RESULTS.json")] = None
    batch_size: Annotated[int, flag(type=count)] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        InTiles.__post_init__(self)
        if self.detections is not None and (self.annotations is None or self.artifact is not None):
            raise ValueError("--detections needs --annotations, and no model")
        if self.detections is not None and self.tiles is not None:
            raise ValueError("--tiles: --detections are there already; tiles need a model")

    def run(self) -> int:
        from runtime.datasets import read_dataset
        from runtime.detector import Detector
        from runtime.evaluation.evaluate import evaluate, evaluate_detections, require_objects
        from runtime.evaluation.results_file import read_coco_results
        from runtime.runs import validation_data

        if self.detections is not None and self.annotations is not None:
            dataset = read_dataset(self.annotations, self.images, check_files=False)
            title = self.detections.name
        else:
            model, options = chosen(self.artifact, *MODELS), self.backend_options
            detector = Detector(model, device=self.device, threads=self.threads, options=options, tiles=self.tiling)
            dataset = validation_data(detector.card, model, self.annotations, self.images)
            title = f"{model.name}, {detector.backend.name}" + ", in tiles" * (detector.tiles is not None)
            say_tiles(detector.tiles)
        warn_of_problems(dataset)
        require_objects(dataset)
        if self.detections is not None:
            detections = read_coco_results(self.detections, dataset)
            if not any(map(len, detections.values())):
                print(f"warning: {self.detections}: it is an empty list: nothing was found anywhere", file=sys.stderr)
            result = evaluate_detections(detections, dataset, max_dets=self.max_dets)
        else:
            with tqdm(unit="image", disable=self.quiet) as bar:
                result = evaluate(detector, dataset, self.batch_size, progress=updates(bar), max_dets=self.max_dets)
        self.conclude(result, dataset, title)
        return 0
