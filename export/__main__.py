"""Turn a checkpoint into an artifact, and prove that it scores the same mAP.

examples:
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
exit status: 0 done, 1 the work failed or an artifact lost too much mAP, 2 wrong usage
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from export.commands.engine import Audit, Trt
from export.commands.int8 import Sensitivity
from export.commands.onnx import Onnx
from export.commands.verify import Bisect, Verify
from runtime.commands.arguments import command_parser
from runtime.commands.shared import exit_status, require_arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's). Returns the exit status; wrong usage exits with 2."""
    parser = command_parser("exporter", __doc__, {
        "onnx": Onnx, "trt": Trt, "audit": Audit, "sensitivity": Sensitivity, "verify": Verify, "bisect": Bisect,
    })  # fmt: skip
    arguments = parser.parse_args(require_arguments(parser, argv))
    return exit_status(arguments, "exporter", "export", "interrupted; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
