"""`exporter verify` and `exporter bisect`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from export.commands.gate import OF_ONNX, Bar
from export.options import Gate
from runtime.backends.options import Engine
from runtime.commands.arguments import flag
from runtime.commands.eval import MaxDets
from runtime.commands.shared import InTiles, Quiet, Runs, chosen


@dataclass(frozen=True, kw_only=True)
class Verify(MaxDets, InTiles, Runs, Quiet):
    """Score artifacts against PyTorch.

    They and the checkpoint they came from have one COCO evaluation; it fails past tolerance.

    Where the application detects in tiles, --tiles scores all of them so.

    artifacts: files of any kind (default: the newest run's best.onnx)
    against: the checkpoint (default: the one beside the artifact)
    device: auto (every backend that runs here), cpu, cuda or cuda:N; with --engine openvino one of its own
    engine: what runs ONNX files: onnxruntime, openvino, or auto: onnxruntime
    report: where verify.json and verify.html go (default: beside the first artifact)
    """

    artifacts: Annotated[tuple[Path, ...], flag("artifacts", metavar="ARTIFACT")] = ()
    against: Annotated[Path | None, flag(metavar="CHECKPOINT")] = None
    device: str = "auto"
    engine: Engine = "auto"
    report: Annotated[Path | None, flag(metavar="DIR")] = None
    gate: Annotated[Gate, OF_ONNX] = Gate()

    def __post_init__(self) -> None:
        super().__post_init__()
        InTiles.__post_init__(self)

    def run(self) -> int:
        from export.verification.report import check_folder, write_reports
        from export.verification.verify import verify

        artifacts = self.artifacts or (chosen(None, "best.onnx", runs=self.runs, kind="artifact"),)
        folder = self.report or artifacts[0].parent
        check_folder(folder)  # raises before the long work
        with Bar(self.quiet) as bar:
            result = verify(
                artifacts, self.against, self.gate.annotations, self.gate.images, self.gate.tolerance,
                device=self.device, progress=bar.progress, max_dets=self.max_dets, tiles=self.tiling,
                engine=self.engine, openvino_precision=self.gate.openvino_precision,
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


@dataclass(frozen=True, kw_only=True)
class Bisect:
    """Name the first layer that departs from PyTorch.

    Compares an ONNX file with the network it was exported from, tensor by tensor on one picture.

    artifact: an .onnx file of any precision
    against: the checkpoint (default: the one beside the artifact)
    image: the picture to look at (default: the first validation picture)
    """

    artifact: Annotated[Path, flag("artifact", metavar="ARTIFACT")]
    against: Annotated[Path | None, flag(metavar="CHECKPOINT")] = None
    image: Annotated[Path | None, flag(metavar="FILE")] = None

    def run(self) -> int:
        """The exit status: 0 if no layer departs, else 1."""
        from export.verification.bisect import bisect

        bisection = bisect(self.artifact, self.against, self.image)
        print(bisection.text())
        return 0 if bisection.first is None else 1
