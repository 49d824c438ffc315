"""The command `runtime`: detect, bench, eval. Each is a thin layer over one documented function."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from runtime.commands import exit_status, moves, teaching
from runtime.detect import MODELS, detect
from runtime.files import write_text
from runtime.runs import newest

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
    return exit_status(_parser().parse_args(argv), "runtime", "train")


def _detect(arguments: argparse.Namespace) -> int:
    model = _model(arguments.model)
    with tqdm(unit="frame", disable=arguments.quiet) as bar:
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
        )
    for path, reason in summary.skipped:
        print(f"warning: {path}: {reason} (skipped)", file=sys.stderr)
    skipped = f", {len(summary.skipped)} unreadable pictures skipped" if summary.skipped else ""
    ended = " (interrupted)" if summary.interrupted else ""
    print(f"{summary.detections} detections in {summary.frames} frames{skipped}{ended}")
    for written in (summary.pictures, summary.json_lines):
        if written is not None:
            print(f"wrote {written}")
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from runtime.bench import bench

    with tqdm(unit="batch size", disable=arguments.quiet) as bar:
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
        )
    print(result.table())
    _write_json(arguments.json, result.to_json())
    return 0


def _eval(arguments: argparse.Namespace) -> int:
    from runtime.detector import Detector
    from runtime.evaluate import evaluate
    from runtime.runs import validation_data

    model = _model(arguments.artifact)
    detector = Detector(model, device=arguments.device, threads=arguments.threads)
    dataset = validation_data(detector.card, model, arguments.annotations, arguments.images)
    if dataset.problems:
        print(f"warning: {dataset.annotations}: {dataset.problems.summary()}", file=sys.stderr)
    with tqdm(unit="image", disable=arguments.quiet) as bar:
        result = evaluate(detector, dataset, batch_size=arguments.batch_size, progress=moves(bar))
    print(result.table())
    _write_json(arguments.json, result.to_json())
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

    p = commands.add_parser(
        "detect", formatter_class=teaching, help="detect in a picture, folder, video, webcam or URL",
        description="Detect, and write annotated pictures or an annotated video, and JSON lines.",
        epilog="""examples:
  runtime detect street.jpg
  runtime detect photos/ --model best.onnx --out found
  runtime detect 0 --show                          the first webcam, in a window; q ends

a JSON line: {"source": ..., "frame": 0, "time_s": 0.0,
              "detections": [{"box_xyxy": [x1, y1, x2, y2], "score": 0.9, "label": 0, "name": ...}]}""",
    )  # fmt: skip
    p.add_argument("source", help="picture, folder of pictures, video file, webcam number, or URL (rtsp://, http://)")
    p.add_argument(
        "--model", type=Path, help="an .onnx or .pt file (default: the newest runs/*/best.onnx, else best.pt)"
    )
    p.add_argument("--out", type=Path, default=Path("detections"), help="output folder (default: detections)")
    p.add_argument("--threshold", type=_score, help="lowest score reported (default: the model's own)")
    p.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="JSON lines file (default: <name>.jsonl in --out, except for one picture)",
    )
    p.add_argument(
        "--no-save", dest="save", action="store_false", help="write no pictures, video or JSON lines by default"
    )
    p.add_argument("--show", action="store_true", help="show the frames in a window; q closes it")
    _device_arguments(p)
    p.set_defaults(run=_detect)

    p = commands.add_parser(
        "bench", formatter_class=teaching, help="time a model on this machine",
        description="Time letterbox, engine and postprocess, one by one and end to end, for each batch size.",
        epilog="""examples:
  runtime bench best.onnx
  runtime bench best.onnx --batch 1,4,8 --frame 1080,1920 --seconds 5 --threads 1
  runtime bench best.pt --device cuda --json bench.json""",
    )  # fmt: skip
    p.add_argument("artifact", type=Path, nargs="?", help="an .onnx or .pt file (default: the newest run's)")
    p.add_argument("--batch", type=_sizes, metavar="N,N,...", help="batch sizes (default: 1, or the graph's fixed one)")
    p.add_argument(
        "--frame",
        type=_size_hw,
        default=(720, 1280),
        metavar="H,W",
        help="size of the synthetic frames (default: 720,1280)",
    )
    p.add_argument("--picture", type=Path, help="a picture to use instead of synthetic frames")
    p.add_argument("--seconds", type=_positive, default=3.0, help="time spent on each batch size (default: 3)")
    p.add_argument("--iterations", type=_count, help="batches timed for each batch size, instead of --seconds")
    p.add_argument("--warmup", type=int, default=3, help="batches run before timing (default: 3)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the timings there, too")
    _device_arguments(p)
    p.set_defaults(run=_bench)

    p = commands.add_parser(
        "eval", formatter_class=teaching, help="COCO evaluation of a model",
        description="Measure COCO's box metrics (mAP and its kin) of a model on annotated pictures.",
        epilog="""examples:
  runtime eval                                     the newest model, on the data it was validated with
  runtime eval best.onnx --annotations val.json --images val/ --json metrics.json""",
    )  # fmt: skip
    p.add_argument("artifact", type=Path, nargs="?", help="an .onnx or .pt file (default: the newest run's)")
    p.add_argument(
        "--annotations",
        type=Path,
        metavar="DATA",
        help="COCO, VOC, YOLO or a JSON list (default: the card's validation data)",
    )
    p.add_argument("--images", type=Path, metavar="DIR", help="folder of the pictures (default: the format's own)")
    p.add_argument("--batch-size", type=_count, default=8, help="images handed over at once (default: 8)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the metrics there, too")
    _device_arguments(p)
    p.set_defaults(run=_eval)
    return parser


def _device_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--threads", type=_count, help="CPU threads of the engine (default: its own choice)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return value


def _score(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a score from 0 to 1, got {text!r}")
    return value


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(_count(part) for part in text.split(","))


def _size_hw(text: str) -> tuple[int, int]:
    sizes = _sizes(text)
    if len(sizes) != 2:
        raise argparse.ArgumentTypeError(f"expected HEIGHT,WIDTH, got {text!r}")
    return sizes[0], sizes[1]


if __name__ == "__main__":
    sys.exit(main())
