"""The command `runtime`: detect, bench, eval. Each is a thin layer over one documented function."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tqdm import tqdm

from runtime.bench.bench import BenchOptions, bench
from runtime.commands.arguments import command_parser, count, flag
from runtime.commands.detect import Detect
from runtime.commands.detect_run import MODELS
from runtime.commands.eval import Measuring, warn_of_problems
from runtime.commands.shared import OnDevice, Quiet, chosen, exit_status, moves, words, write_json

_EXAMPLES = """examples:
  runtime detect street.jpg                        newest model of runs/, result in detections/street.jpg
  runtime detect photos/ --model best.onnx --out found
  runtime detect clip.mp4 --threshold 0.5          annotated clip.mp4 and clip.jsonl
  runtime detect rtsp://camera/1 --no-save --json camera.jsonl
  runtime bench best.onnx --batch 1,8 --threads 2
  runtime eval best.onnx --annotations val.json --images val/

exit status: 0 done, 1 the work failed, 2 wrong usage"""


@dataclass(frozen=True, kw_only=True)
class Bench(OnDevice, Quiet):
    """Time a model on this machine.

    Every stage, one by one and end to end, against the engine alone; then streams, if asked.

    artifact: an .onnx, .engine or .pt file (default: the newest run's)
    json: write the timings there, too

    examples:
      runtime bench best.onnx
      runtime bench best.onnx --batch 1,4,8 --frame 1080,1920 --seconds 5 --threads 1
      runtime bench best.onnx --batch 16 --streams 1,8,32         cameras through one batcher
      runtime bench best.pt --device cuda --json bench.json

    how to read it:
      A turn runs one batch end to end, one stage by stage, and one through the engine alone. Times are for the
      whole batch; half of the turns were faster than p50, 99 of 100 faster than p99. "= 98 % of the bare engine's
      images/s" is what detector(frames) leaves of the engine's speed. A stage that has no row could not be told
      apart: the lines at the end say why. Decoding is not part of end to end.
      With --streams, images/s is what the batcher gets through when every stream submits as fast as it may;
      latencies, from submit to the answer, are those at 80 % of that, as a queue that is always full has only one.
    """

    artifact: Annotated[Path | None, flag("artifact")] = None
    options: Annotated[BenchOptions, {
        "batch_sizes": flag("--batch", metavar="N,N,..."), "frame_hw": flag("--frame", metavar="H,W"),
        "picture": flag(), "streams": flag(metavar="N,N,..."), "max_wait_ms": flag("--max-wait", metavar="MS"),
        "seconds": flag(), "iterations": flag(), "warmup": flag(),
    }] = BenchOptions()  # fmt: skip
    json: Annotated[Path | None, flag(metavar="FILE")] = None

    def run(self) -> int:
        with tqdm(unit="step", disable=self.quiet) as bar:
            result = bench(
                chosen(self.artifact, *MODELS), self.options, device=self.device, threads=self.threads,
                check_hashes=not self.skip_hashes, progress=moves(bar),
            )  # fmt: skip
        print(result.table())
        write_json(self.json, result.to_json())
        return 0


@dataclass(frozen=True, kw_only=True)
class Eval(Measuring, OnDevice, Quiet):
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
      runtime eval --detections results.json --annotations val.json    what another program found
    """

    artifact: Annotated[Path | None, flag("artifact")] = None
    detections: Annotated[Path | None, flag(metavar="RESULTS.json")] = None
    batch_size: Annotated[int, flag(type=count)] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.detections is not None and (self.annotations is None or self.artifact is not None):
            raise ValueError("--detections needs --annotations, and no model")

    def run(self) -> int:
        from runtime.backends.options import BackendOptions
        from runtime.datasets import read_dataset
        from runtime.detector import Detector
        from runtime.evaluation.evaluate import evaluate, judge_detections, require_objects
        from runtime.evaluation.results_file import read_coco_results
        from runtime.runs import validation_data

        if self.detections is not None and self.annotations is not None:
            dataset = read_dataset(self.annotations, self.images, check_files=False)
            title = self.detections.name
        else:
            model, options = chosen(self.artifact, *MODELS), BackendOptions(check_hashes=not self.skip_hashes)
            detector = Detector(model, device=self.device, threads=self.threads, options=options)
            dataset = validation_data(detector.card, model, self.annotations, self.images)
            title = f"{model.name}, {detector.backend.name}"
        warn_of_problems(dataset)
        require_objects(dataset)
        if self.detections is not None:
            result = judge_detections(read_coco_results(self.detections, dataset), dataset, max_dets=self.max_dets)
        else:
            with tqdm(unit="image", disable=self.quiet) as bar:
                result = evaluate(detector, dataset, self.batch_size, progress=moves(bar), max_dets=self.max_dets)
        self.conclude(result, dataset, title)
        return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's). Returns the exit status; wrong usage exits with 2."""
    parser = command_parser(
        "runtime", "Run a trained detector: on pictures and videos, against the clock, against COCO annotations.",
        _EXAMPLES, {"detect": Detect, "bench": Bench, "eval": Eval},
    )  # fmt: skip
    return exit_status(parser.parse_args(words(parser, argv)), "runtime", "train")


if __name__ == "__main__":
    sys.exit(main())
