"""The command `exporter`: onnx, verify. Each is a thin layer over one documented function."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from runtime.commands import exit_status, teaching

_EXAMPLES = """examples:
  exporter onnx --simplify                         the newest run's best.pt, to best.onnx beside it
  exporter onnx runs/demo/best.pt --out detector.onnx --tolerance 0.05
  exporter onnx imported.pt --simplify --annotations val.json --images val/
  exporter verify runs/demo/best.onnx              score it against the checkpoint it came from
  exporter verify a.onnx b.onnx --against best.pt --annotations val.json --images val/

In bash and zsh the word `export` is a builtin of the shell: `export onnx best.pt` does nothing there.
Say `exporter`, or `python -m export`.
exit status: 0 done, 1 the work failed or an artifact lost too much mAP, 2 wrong usage"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's). Returns the exit status; wrong usage exits with 2."""
    return exit_status(_parser().parse_args(argv), "exporter", "export", "interrupted; nothing was written")


def _onnx(arguments: argparse.Namespace) -> int:
    from export.graph import GateError, to_onnx
    from export.report import write_reports

    checkpoint = _checkpoint(arguments)
    with _Bar(arguments.quiet) as bar:
        try:
            result = to_onnx(
                checkpoint, arguments.out, arguments.simplify, arguments.opset, arguments.batch,
                not arguments.no_verify, arguments.tolerance, bar.say, bar.progress,
                arguments.annotations, arguments.images,
            )  # fmt: skip
        except GateError as error:
            print(error.verification.table())
            raise
    if result.verification is not None:
        print(result.verification.table())
        for path in write_reports(result.verification, result.path.parent, f"{result.path.stem}.verify"):
            print(f"wrote {path}")
    print(f"wrote {result.path} ({result.megabytes:.1f} MB, {result.nodes} nodes)")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from export.report import write_reports
    from export.verification import verify
    from runtime.runs import newest

    artifacts = arguments.artifacts
    if not artifacts:
        artifacts = [newest("best.onnx", runs=arguments.runs)]
        print(f"artifact: {artifacts[0]} (the newest run's)")
    with _Bar(arguments.quiet) as bar:
        result = verify(
            artifacts, arguments.against, arguments.annotations, arguments.images, arguments.tolerance,
            arguments.device, bar.progress,
        )  # fmt: skip
    print(result.table())
    for path in write_reports(result, arguments.report or artifacts[0].parent):
        print(f"wrote {path}")
    print("passed" if result.passed else "FAILED: an artifact lost more mAP than it may")
    return 0 if result.passed else 1


def _checkpoint(arguments: argparse.Namespace) -> Path:
    from runtime.runs import newest

    checkpoint: Path | None = arguments.checkpoint
    if checkpoint is None:
        checkpoint = newest("best.pt", runs=arguments.runs)
        print(f"checkpoint: {checkpoint} (the newest run's)")
    return checkpoint


class _Bar:
    """A progress bar for what is scored now, and lines that stay above it."""

    def __init__(self, quiet: bool):
        self.bar = tqdm(unit="image", disable=quiet, leave=False)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def progress(self, what: str, done: int, total: int) -> None:
        self.bar.set_description_str(what, refresh=False)
        self.bar.total, self.bar.n = total, done
        self.bar.refresh()

    def say(self, line: str) -> None:
        self.bar.write(line)


# ---------------------------------------------------------------------------------------------
# arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="exporter", formatter_class=teaching, epilog=_EXAMPLES,
        description="Turn a checkpoint into an artifact, and prove that it scores the same mAP.",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], short: str, long: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=short, description=long, formatter_class=teaching)
        sub.set_defaults(run=run)
        sub.add_argument("--quiet", action="store_true", help="no progress bar")
        sub.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
        sub.add_argument(
            "--tolerance", type=float, metavar="POINTS",
            help="mAP points that may be lost (default: 0.1 for fp32)",
        )  # fmt: skip
        sub.add_argument(
            "--annotations", type=Path, metavar="FILE", help="of any format (default: the run's validation data)"
        )
        sub.add_argument("--images", type=Path, metavar="FOLDER", help="folder of its pictures")
        return sub

    sub = command(
        "onnx", _onnx, "write one ONNX graph, from pixels to detections",
        "Fold, trace, check, run and score a checkpoint; write it only if it came through all of that.",
    )  # fmt: skip
    sub.add_argument("checkpoint", nargs="?", type=Path, help="default: the newest run's best.pt")
    sub.add_argument("--out", type=Path, metavar="FILE.onnx", help="default: beside the checkpoint, with its name")
    sub.add_argument("--simplify", action="store_true", help="remove redundant nodes with onnxslim")
    sub.add_argument("--batch", type=int, metavar="N", help="fix the batch size (default: any)")
    sub.add_argument("--opset", type=int, default=20, help="ONNX operator set (default: 20)")
    sub.add_argument("--no-verify", action="store_true", help="do not score it; the card will say so")

    sub = command(
        "verify", _verify, "score artifacts against PyTorch",
        "Score artifacts and the checkpoint they came from with one COCO evaluation; fail past tolerance.",
    )  # fmt: skip
    sub.add_argument("artifacts", nargs="*", type=Path, metavar="ARTIFACT", help="default: the newest run's best.onnx")
    sub.add_argument("--against", type=Path, metavar="CHECKPOINT", help="default: the one beside the artifact")
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    sub.add_argument("--report", type=Path, metavar="DIR", help="where verify.json and verify.html go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
