"""The command `exporter`: onnx, trt, audit, sensitivity, verify, bisect. Each is a thin layer over one function."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from export.commands.bisect import BISECT, bisect, bisect_arguments
from export.commands.engine import AUDIT, TRT, audit, audit_arguments, trt, trt_arguments
from export.commands.int8 import SENSITIVITY, sensitivity, sensitivity_arguments
from export.commands.onnx import ONNX, onnx, onnx_arguments
from export.commands.verify import VERIFY, verify, verify_arguments
from runtime.commands.shared import exit_status, teaching, words

_EXAMPLES = """examples:
  exporter onnx --simplify                         the newest run's best.pt, to best.onnx beside it
  exporter onnx runs/demo/best.pt --out detector.onnx --tolerance 0.05
  exporter onnx runs/demo/best.pt --precision fp16 --source-size 1080,1920 --out camera.onnx
  exporter onnx imported.pt --simplify --annotations val.json --images val/
  exporter onnx --int8 --keep-mAP 0.5              8 bits; what loses too much goes back to float
  exporter trt --fp16                              the newest run's best.pt, to best.fp16.engine beside it
  exporter trt best.onnx --engine rtx --sm 86      an engine for an RTX 30 card, built without a GPU
  exporter audit best.int8.onnx                    the share of its convolutions that is INT8, and what is not
  exporter sensitivity runs/demo/best.pt           which layers suffer from 8 bits
  exporter verify runs/demo/best.onnx              score it against the checkpoint it came from
  exporter verify a.onnx b.onnx --against best.pt --annotations val.json --images val/
  exporter bisect best.int8.onnx --against best.pt which layer is not the network's

In bash and zsh the word `export` is a builtin of the shell: `export onnx best.pt` does nothing there.
Say `exporter`, or `python -m export`.
exit status: 0 done, 1 the work failed or an artifact lost too much mAP, 2 wrong usage"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's). Returns the exit status; wrong usage exits with 2."""
    parser = _parser()
    return exit_status(parser.parse_args(words(parser, argv)), "exporter", "export", "interrupted; nothing was written")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="exporter", formatter_class=teaching, epilog=_EXAMPLES,
        description="Turn a checkpoint into an artifact, and prove that it scores the same mAP.",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, short: str, long: str, take: Callable[[argparse.ArgumentParser], None],
        run: Callable[[argparse.Namespace], int],
    ) -> None:  # fmt: skip
        sub = commands.add_parser(name, help=short, description=long, formatter_class=teaching)
        sub.set_defaults(run=run)
        take(sub)

    command("onnx", "write one ONNX graph, from pixels to detections", ONNX, onnx_arguments, onnx)
    command("trt", "build a TensorRT or TensorRT-RTX engine", TRT, trt_arguments, trt)
    command("audit", "say what precision a file really computes in", AUDIT, audit_arguments, audit)
    command("sensitivity", "rank layers by what 8 bits cost them", SENSITIVITY, sensitivity_arguments, sensitivity)
    command("verify", "score artifacts against PyTorch", VERIFY, verify_arguments, verify)
    command("bisect", "name the first layer that departs from PyTorch", BISECT, bisect_arguments, bisect)
    return parser


if __name__ == "__main__":
    sys.exit(main())
