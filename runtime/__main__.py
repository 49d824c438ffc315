"""Run a trained detector: on pictures and videos, as a server, against the clock, against COCO annotations.

examples:
  runtime detect street.jpg                        newest model of runs/, result in detections/street.jpg
  runtime detect photos/ --model best.onnx --out found
  runtime detect clip.mp4 --threshold 0.5          annotated clip.mp4 and clip.jsonl
  runtime detect rtsp://camera/1 --no-save --json camera.jsonl
  runtime serve best.onnx                          HTTP server at http://127.0.0.1:8000
  runtime bench best.onnx --batch 1,8 --threads 2
  runtime eval best.onnx --annotations val.json --images val/

exit status: 0 done, 1 the work failed, 2 wrong usage
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from runtime.commands.arguments import command_parser
from runtime.commands.bench import Bench
from runtime.commands.detect import Detect
from runtime.commands.eval import Eval
from runtime.commands.serve import Serve
from runtime.commands.shared import exit_status, require_arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's). Returns the exit status; wrong usage exits with 2."""
    parser = command_parser("runtime", __doc__, {"detect": Detect, "serve": Serve, "bench": Bench, "eval": Eval})
    return exit_status(parser.parse_args(require_arguments(parser, argv)), "runtime", "train")


if __name__ == "__main__":
    sys.exit(main())
