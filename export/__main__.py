"""The command `exporter`: onnx, sensitivity, verify. Each is a thin layer over one documented function."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from export.int8_commands import SENSITIVITY, sensitivity, sensitivity_arguments
from export.onnx_commands import ONNX, onnx, onnx_arguments
from export.verify_commands import VERIFY, verify, verify_arguments
from runtime.commands import exit_status, teaching

_EXAMPLES = """examples:
  exporter onnx --simplify                         the newest run's best.pt, to best.onnx beside it
  exporter onnx runs/demo/best.pt --out detector.onnx --tolerance 0.05
  exporter onnx imported.pt --simplify --annotations val.json --images val/
  exporter onnx --int8 --keep-mAP 0.5              8 bits; what loses too much goes back to float
  exporter sensitivity runs/demo/best.pt           which layers suffer from 8 bits
  exporter verify runs/demo/best.onnx              score it against the checkpoint it came from
  exporter verify a.onnx b.onnx --against best.pt --annotations val.json --images val/

In bash and zsh the word `export` is a builtin of the shell: `export onnx best.pt` does nothing there.
Say `exporter`, or `python -m export`.
exit status: 0 done, 1 the work failed or an artifact lost too much mAP, 2 wrong usage"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's). Returns the exit status; wrong usage exits with 2."""
    return exit_status(_parser().parse_args(argv), "exporter", "export", "interrupted; nothing was written")


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
    command("sensitivity", "rank layers by what 8 bits cost them", SENSITIVITY, sensitivity_arguments, sensitivity)
    command("verify", "score artifacts against PyTorch", VERIFY, verify_arguments, verify)
    return parser


if __name__ == "__main__":
    sys.exit(main())
