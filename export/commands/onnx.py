"""`exporter onnx`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from export.commands.gate import Bar, checkpoint_of, gate_arguments, gate_of, print_refusal
from export.commands.int8 import int8_arguments, int8_of
from export.options import InputForm, NmsKind, OnnxOptions, Precision

ONNX = "Fold, trace, check, run and score a checkpoint; write it only if it came through all of that."


def onnx_arguments(parser: argparse.ArgumentParser) -> None:
    """What `exporter onnx` takes."""
    parser.add_argument("checkpoint", nargs="?", type=Path, help="default: the newest run's best.pt")
    parser.add_argument("--out", type=Path, metavar="FILE.onnx", help="default: beside the checkpoint, with its name")
    parser.add_argument("--simplify", action="store_true", help="remove redundant nodes with onnxslim")
    parser.add_argument(
        "--nms", choices=get_args(NmsKind), default="auto",
        help="auto: TensorRT's plugin where there is one, else standard operators, in one file (default); portable: "
        "standard operators; loop: the same in a loop, exact always; onnx: NonMaxSuppression; plugin: TensorRT only; "
        "none: candidates, the runtime suppresses",
    )  # fmt: skip
    parser.add_argument(
        "--certificate", action="store_true", help="with --nms portable: an output that says that NMS was exact"
    )
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        help="of the network (default: int8 after QAT, else fp32); int8: a float checkpoint is calibrated on pictures",
    )
    parser.add_argument("--batch", type=_batch, metavar="dynamic|N", help="batch size (default: dynamic, any)")
    parser.add_argument(
        "--source-size", type=_size, metavar="H,W",
        help="take a camera's raw frames of this size: the letterbox is in the graph, boxes are in frame pixels",
    )  # fmt: skip
    parser.add_argument(
        "--input", choices=get_args(InputForm), default="uint8-nhwc",
        help="uint8 [B,H,W,3] BGR as cameras give it (default), or float32 [B,3,H,W] RGB from 0 to 1",
    )  # fmt: skip
    parser.add_argument("--opset", type=int, default=20, help="ONNX operator set (default: 20)")
    parser.add_argument("--no-verify", action="store_true", help="do not score it; the card will say so")
    parser.add_argument("--int8", action="store_true", help="short for --precision int8")
    int8_arguments(parser)
    gate_arguments(parser)


def onnx(arguments: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    from export.onnx_export import GateError, to_onnx
    from export.verification.report import write_reports

    int8 = arguments.int8 or arguments.precision == "int8"
    options = OnnxOptions(
        arguments.simplify, arguments.opset, arguments.batch, arguments.nms, arguments.certificate,
        "int8" if int8 else arguments.precision, arguments.source_size, arguments.input,
        int8_of(arguments, int8),
    )  # fmt: skip
    checkpoint = checkpoint_of(arguments)
    with Bar(arguments.quiet) as bar:
        try:
            result = to_onnx(checkpoint, arguments.out, options, gate_of(arguments), bar.say, bar.progress)
        except GateError as error:
            print_refusal(error)
            raise
    if result.verification is not None:
        print(result.verification.table())
        for path in write_reports(result.verification, result.path.parent, f"{result.path.stem}.verify"):
            print(f"wrote {path}")
    print(f"wrote {result.path} ({result.megabytes:.1f} MB, {result.nodes} nodes)")
    return 0


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected dynamic, or a number of images from 1, got {text!r}")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() and int(part) >= 1 for part in parts):
        raise argparse.ArgumentTypeError(f"expected H,W in pixels, such as 1080,1920, got {text!r}")
    return int(parts[0]), int(parts[1])
