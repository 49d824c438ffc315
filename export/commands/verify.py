"""`exporter verify`."""

from __future__ import annotations

import argparse
from pathlib import Path

from export.commands.gate import Bar, gate_arguments
from runtime.commands.eval import max_dets_argument

VERIFY = "Score artifacts and the checkpoint they came from with one COCO evaluation; fail past tolerance."


def verify_arguments(parser: argparse.ArgumentParser) -> None:
    """What `exporter verify` takes."""
    parser.add_argument(
        "artifacts", nargs="*", type=Path, metavar="ARTIFACT", help="default: the newest run's best.onnx"
    )
    parser.add_argument("--against", type=Path, metavar="CHECKPOINT", help="default: the one beside the artifact")
    parser.add_argument("--device", default="auto", help="auto (every backend that runs here), cpu, cuda or cuda:N")
    parser.add_argument("--report", type=Path, metavar="DIR", help="where verify.json and verify.html go")
    max_dets_argument(parser)
    gate_arguments(parser)


def verify(arguments: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    from export.verification import verify as verification
    from export.verification.report import check_folder, write_reports
    from runtime.runs import newest

    artifacts = arguments.artifacts
    if not artifacts:
        artifacts = [newest("best.onnx", runs=arguments.runs)]
        print(f"artifact: {artifacts[0]} (the newest run's)")
    folder = arguments.report or artifacts[0].parent
    check_folder(folder)  # before the long work, not after it
    with Bar(arguments.quiet) as bar:
        result = verification.verify(
            artifacts, arguments.against, arguments.annotations, arguments.images, arguments.tolerance,
            arguments.device, bar.progress, max_dets=arguments.max_dets,
        )  # fmt: skip
    print(result.table())
    for path in write_reports(result, folder):
        print(f"wrote {path}")
    print(_LAST_LINE[result.verdict])
    return 0 if result.passed else 1


_LAST_LINE = {
    "passed": "passed",
    "failed": "FAILED: an artifact is not what it was exported from; see the lines below the table",
    "not scored": "NOT SCORED: an artifact was built, and nothing here can run it; verify it where it will run",
}
