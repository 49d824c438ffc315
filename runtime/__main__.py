"""The command `runtime`: detect, bench, eval. Each is a thin layer over one documented function."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from runtime.commands.detect import conclude_detect, detect_arguments
from runtime.commands.detect_run import MODELS, detect
from runtime.commands.eval import EXPLANATION, conclude, measurement_arguments, warn_of_problems
from runtime.commands.shared import count, exit_status, moves, positive, teaching, words
from runtime.files.write import write_text
from runtime.runs import newest
from runtime.streams.options import StreamOptions

_EXAMPLES = """examples:
  runtime detect street.jpg                        newest model of runs/, result in detections/street.jpg
  runtime detect photos/ --model best.onnx --out found
  runtime detect clip.mp4 --threshold 0.5          annotated clip.mp4 and clip.jsonl
  runtime detect rtsp://camera/1 --no-save --json camera.jsonl
  runtime bench best.onnx --batch 1,8 --threads 2
  runtime eval best.onnx --annotations val.json --images val/

exit status: 0 done, 1 the work failed, 2 wrong usage"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's). Returns the exit status; wrong usage exits with 2."""
    parser = _parser()
    return exit_status(parser.parse_args(words(parser, argv)), "runtime", "train")


def _detect(arguments: argparse.Namespace) -> int:
    model = _model(arguments.model)
    options = StreamOptions(
        every=arguments.every, decoder=arguments.decoder, stall_s=arguments.stall, give_up_s=arguments.give_up
    )
    with tqdm(unit=" frames", disable=arguments.quiet) as bar, logging_redirect_tqdm():
        summary = detect(
            arguments.source,
            model,
            out=arguments.out,
            threshold=arguments.threshold,
            device=arguments.device,
            threads=arguments.threads,
            save=arguments.save,
            show=arguments.show,
            json_lines=arguments.json,
            progress=moves(bar),
            classes=arguments.classes,
            track=arguments.track,
            options=options,
            batch=arguments.batch,
            check_hashes=not arguments.skip_hashes,
        )
    return conclude_detect(summary)


def _bench(arguments: argparse.Namespace) -> int:
    from runtime.bench.bench import bench

    with tqdm(unit="step", disable=arguments.quiet) as bar:
        result = bench(
            _model(arguments.artifact),
            batch_sizes=arguments.batch,
            frame_hw=arguments.frame,
            picture=arguments.picture,
            seconds=arguments.seconds,
            iterations=arguments.iterations,
            warmup=arguments.warmup,
            device=arguments.device,
            threads=arguments.threads,
            progress=moves(bar),
            streams=arguments.streams,
            max_wait_ms=arguments.max_wait,
            check_hashes=not arguments.skip_hashes,
        )
    print(result.table())
    _write_json(arguments.json, result.to_json())
    return 0


def _eval(arguments: argparse.Namespace) -> int:
    if arguments.detections is not None:
        return _eval_detections(arguments)
    from runtime.backends.options import BackendOptions
    from runtime.detector import Detector
    from runtime.evaluation.evaluate import evaluate, require_objects
    from runtime.runs import validation_data

    model = _model(arguments.artifact)
    options = BackendOptions(check_hashes=not arguments.skip_hashes)
    detector = Detector(model, device=arguments.device, threads=arguments.threads, options=options)
    dataset = validation_data(detector.card, model, arguments.annotations, arguments.images)
    warn_of_problems(dataset)
    require_objects(dataset)
    with tqdm(unit="image", disable=arguments.quiet) as bar:
        result = evaluate(
            detector, dataset, batch_size=arguments.batch_size, progress=moves(bar), max_dets=arguments.max_dets
        )
    conclude(arguments, result, dataset, f"{model.name}, {detector.backend.name}")
    return 0


def _eval_detections(arguments: argparse.Namespace) -> int:
    from runtime.datasets import read_dataset
    from runtime.evaluation.evaluate import judge_detections, require_objects
    from runtime.evaluation.results_file import read_coco_results

    if arguments.annotations is None or arguments.artifact is not None:
        arguments.parser.error("--detections needs --annotations, and no model")
    dataset = read_dataset(arguments.annotations, arguments.images, check_files=False)
    warn_of_problems(dataset)
    require_objects(dataset)
    found = read_coco_results(arguments.detections, dataset)
    if not any(map(len, found.values())):
        print(f"warning: {arguments.detections}: it is an empty list: nothing was found anywhere", file=sys.stderr)
    result = judge_detections(found, dataset, max_dets=arguments.max_dets)
    conclude(arguments, result, dataset, arguments.detections.name)
    return 0


def _model(given: Path | None) -> Path:
    if given is not None:
        return given
    model = newest(*MODELS)
    print(f"model: {model} (the newest run's)")
    return model


def _write_json(path: Path | None, content: object) -> None:
    if path is None:
        return
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    print(f"wrote {path}")


# ---------------------------------------------------------------------------------------------
# arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="runtime", formatter_class=teaching, epilog=_EXAMPLES,
        description="Run a trained detector: on pictures and videos, against the clock, against COCO annotations.",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="detect|bench|eval")

    p = detect_arguments(commands)
    _device_arguments(p)
    p.set_defaults(run=_detect)

    p = commands.add_parser(
        "bench", formatter_class=teaching, help="time a model on this machine",
        description="Time every stage, one by one and end to end, against the engine alone; then streams, if asked.",
        epilog="""examples:
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
  latencies, from submit to the answer, are those at 80 % of that, as a queue that is always full has only one.""",
    )  # fmt: skip
    p.add_argument("artifact", type=Path, nargs="?", help="an .onnx, .engine or .pt file (default: the newest run's)")
    p.add_argument("--batch", type=_sizes, metavar="N,N,...", help="batch sizes (default: 1, or the graph's fixed one)")
    p.add_argument(
        "--frame",
        type=_size_hw,
        default=(720, 1280),
        metavar="H,W",
        help="size of the synthetic frames (default: 720,1280)",
    )
    p.add_argument("--picture", type=Path, help="a picture to use instead of synthetic frames")
    p.add_argument("--streams", type=_sizes, default=(), metavar="N,N,...", help="cameras at once, through a batcher")
    p.add_argument(
        "--max-wait", type=positive, default=4.0, metavar="MS",
        help="longest wait of the batcher for company (default: 4)",
    )  # fmt: skip
    p.add_argument(
        "--seconds", type=positive, default=3.0,
        help="time spent on each batch size, and twice on each number of streams (default: 3)",
    )  # fmt: skip
    p.add_argument("--iterations", type=count, help="turns timed for each batch size, instead of --seconds")
    p.add_argument("--warmup", type=int, default=3, help="turns before timing (default: 3)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the timings there, too")
    _device_arguments(p)
    p.set_defaults(run=_bench)

    p = commands.add_parser(
        "eval", formatter_class=teaching, help="COCO or VOC evaluation of a model, with a report",
        description="Measure a model on annotated pictures: mAP and its kin, classes, thresholds, confusions. "
        "(Other ways of merging boxes, --nms and --tta, need a checkpoint: `trainer eval`.)",
        epilog=f"""examples:
  runtime eval                                     the newest model, on the data it was validated with
  runtime eval best.onnx --annotations val.json --images val/ --json metrics.json
  runtime eval --report report/ --precision 0.9    a page with pictures; thresholds for 9 of 10 right
  runtime eval --detections results.json --annotations val.json    what another program found

{EXPLANATION}""",
    )  # fmt: skip
    p.add_argument("artifact", type=Path, nargs="?", help="an .onnx, .engine or .pt file (default: the newest run's)")
    p.add_argument(
        "--annotations",
        type=Path,
        metavar="DATA",
        help="COCO, VOC, YOLO or a JSON list (default: the card's validation data)",
    )
    p.add_argument("--images", type=Path, metavar="DIR", help="folder of the pictures (default: the format's own)")
    p.add_argument(
        "--detections", type=Path, metavar="RESULTS.json",
        help="instead of a model: score a file of COCO results, a list of image_id, category_id, bbox, score",
    )  # fmt: skip
    p.add_argument("--batch-size", type=count, default=8, help="images handed over at once (default: 8)")
    measurement_arguments(p)
    _device_arguments(p)
    p.set_defaults(run=_eval, parser=p)
    return parser


def _device_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--threads", type=count, help="CPU threads of the engine (default: its own choice)")
    parser.add_argument("--skip-hashes", action="store_true", help="load a model that was edited after it was written")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(count(part) for part in text.split(","))


def _size_hw(text: str) -> tuple[int, int]:
    sizes = _sizes(text)
    if len(sizes) != 2:
        raise argparse.ArgumentTypeError(f"expected HEIGHT,WIDTH, got {text!r}")
    return sizes[0], sizes[1]


if __name__ == "__main__":
    sys.exit(main())
