"""`exporter onnx`."""

from __future__ import annotations

import argparse
from pathlib import Path

from export.gate_commands import Bar, checkpoint_of, gate_arguments, gate_of
from export.int8_commands import int8_arguments, int8_of

ONNX = "Fold, trace, check, run and score a checkpoint; write it only if it came through all of that."


def onnx_arguments(parser: argparse.ArgumentParser) -> None:
    """What `exporter onnx` takes."""
    parser.add_argument("checkpoint", nargs="?", type=Path, help="default: the newest run's best.pt")
    parser.add_argument("--out", type=Path, metavar="FILE.onnx", help="default: beside the checkpoint, with its name")
    parser.add_argument("--simplify", action="store_true", help="remove redundant nodes with onnxslim")
    parser.add_argument("--batch", type=int, metavar="N", help="fix the batch size (default: any)")
    parser.add_argument("--opset", type=int, default=20, help="ONNX operator set (default: 20)")
    parser.add_argument("--no-verify", action="store_true", help="do not score it; the card will say so")
    parser.add_argument("--int8", action="store_true", help="8 bits; a float checkpoint is calibrated on pictures")
    int8_arguments(parser)
    gate_arguments(parser)


def onnx(arguments: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    from export.graph import GateError, to_onnx
    from export.options import OnnxOptions
    from export.report import write_reports

    int8 = int8_of(arguments) if arguments.int8 else None
    options = OnnxOptions(arguments.simplify, arguments.opset, arguments.batch, int8)
    checkpoint = checkpoint_of(arguments)
    with Bar(arguments.quiet) as bar:
        try:
            result = to_onnx(checkpoint, arguments.out, options, gate_of(arguments), bar.say, bar.progress)
        except GateError as error:
            print(error.verification.table())
            raise
    if result.verification is not None:
        print(result.verification.table())
        for path in write_reports(result.verification, result.path.parent, f"{result.path.stem}.verify"):
            print(f"wrote {path}")
    print(f"wrote {result.path} ({result.megabytes:.1f} MB, {result.nodes} nodes)")
    return 0
