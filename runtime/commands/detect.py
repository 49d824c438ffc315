"""Arguments and last words of `runtime detect`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Literal

from runtime.commands.detect_run import DetectSummary
from runtime.commands.shared import count, positive, teaching
from runtime.streams.capture import DECODERS


def detect_arguments(commands: Any) -> argparse.ArgumentParser:
    """Adds the parser of `runtime detect` to the subparsers `commands`."""
    p: argparse.ArgumentParser = commands.add_parser(
        "detect", formatter_class=teaching, help="detect in pictures, folders, videos, webcams or URLs",
        description="Detect, and write annotated pictures or an annotated video, and JSON lines. Several sources go "
        "through the model together and have outputs of their own.",
        epilog="""examples:
  runtime detect street.jpg
  runtime detect photos/ --model best.onnx --out found
  runtime detect 'photos/**/*.jpg' --classes car,person --no-save --json found.jsonl
  runtime detect 0 --show                          the first webcam, in a window; q ends
  runtime detect clip.mp4 --track                  objects keep their number from frame to frame
  runtime detect rtsp://10.0.0.1/1 rtsp://10.0.0.2/1 --every 5

Webcams and URLs without an end keep their newest frame, and are connected again when they go; of files, every
frame comes. Ctrl-C, SIGTERM and SIGHUP end with the outputs complete up to there; a second one ends at once, without.
Exit status 1 also where one of several sources failed; the others' outputs are written.

a JSON line: {"source": ..., "frame": 0, "time_s": 0.0,
              "detections": [{"box_xyxy": [x1, y1, x2, y2], "score": 0.9, "label": 0, "name": ...}]}
with --track each detection also has "track": a number, or null""",
    )  # fmt: skip
    p.add_argument(
        "source",
        nargs="+",
        help="picture, folder or quoted glob of pictures, video file, webcam number, or URL (rtsp://, http://)",
    )
    p.add_argument(
        "--model", type=Path, help="an .onnx, .engine or .pt file (default: the newest runs/*/best.onnx, else best.pt)"
    )
    p.add_argument("--out", type=Path, default=Path("detections"), help="output folder (default: detections)")
    p.add_argument(
        "--threshold",
        type=_threshold,
        help="lowest score reported, or card for each class's own (default: the model's)",
    )
    p.add_argument(
        "--classes",
        type=_classes,
        metavar="NAME,...",
        help="report these classes only, by name or label (default: all)",
    )
    p.add_argument("--track", action="store_true", help="number objects from frame to frame (the extra track)")
    p.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="one JSON lines file for all sources (default: <name>.jsonl in --out for each, except for pictures)",
    )
    p.add_argument(
        "--save",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write pictures, videos and JSON lines into --out (default: --save)",
    )
    p.add_argument("--show", action="store_true", help="show the frames in a window; q closes it")
    p.add_argument("--every", type=count, default=1, metavar="N", help="take each n-th frame only (default: 1)")
    p.add_argument("--batch", type=count, metavar="N", help="most frames at once (default: the number of sources)")
    p.add_argument("--decoder", choices=DECODERS, default="opencv",
                   help="pyav: the extra video; nvidia: files on a GPU, by an extra (default: opencv)")  # fmt: skip
    p.add_argument(
        "--stall",
        type=positive,
        default=10.0,
        metavar="SECONDS",
        help="a source that gives no frame for so long is gone: connected again, or failed (default: 10)",
    )
    p.add_argument(
        "--give-up",
        type=positive,
        metavar="SECONDS",
        help="a camera without a frame for so long has failed (default: never)",
    )
    return p


def conclude_detect(summary: DetectSummary) -> int:
    """Say what was done and where it is; the exit status."""
    for path, reason in summary.skipped:
        print(f"warning: {path}: {reason} (skipped)", file=sys.stderr)
    for path, reason in summary.unwritten:
        print(f"warning: {path}: not written: {reason}", file=sys.stderr)
    skipped = f", {len(summary.skipped)} unreadable pictures skipped" if summary.skipped else ""
    ended = " (interrupted)" if summary.interrupted else ""
    fps = f", {summary.frames / summary.seconds:.1f} frames/s" if summary.seconds > 0 else ""
    print(f"{summary.detections} detections in {summary.frames} frames{skipped}{fps}{ended}")
    if len(summary.sources) > 1:
        for one in summary.sources:
            dropped = f", {one.state.dropped} dropped" if one.state.dropped else ""
            print(f"  {one.source}: {one.detections} detections in {one.frames} frames{dropped}")
    written = [path for one in summary.sources if one.frames for path in (one.pictures, one.json_lines)]
    for name in dict.fromkeys(str(path) for path in written if path is not None):
        print(f"wrote {name}")
    failed = [one for one in summary.sources if one.state.state == "failed"]
    for one in failed:
        print(f"error: after {one.frames} frames: {one.state.error}", file=sys.stderr)
    return 1 if failed else 0


def _classes(text: str) -> list[str]:
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise argparse.ArgumentTypeError(f"expected class names or labels with commas between, got {text!r}")
    return names


def _score(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a score from 0 to 1, got {text!r}")
    return value


def _threshold(text: str) -> float | Literal["card"]:
    return "card" if text == "card" else _score(text)
