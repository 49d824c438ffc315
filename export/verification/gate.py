"""The gate: an artifact gets its final name only after it was scored against its checkpoint.

Of a refused file only the report is kept, so that nobody can deploy it by mistake. With `--no-verify` the file is
written, its card says that it was not scored, and `exporter bisect` can examine it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from export.options import ExportError, Gate, Progress
from export.verification.scores import Verification
from export.verification.verify import verify
from runtime.artifact import read_card
from runtime.datasets.annotations import CocoDataset

if TYPE_CHECKING:
    from export.verification.bisect import Bisection


class GateError(ExportError):
    """The artifact lost more mAP than allowed; `verification` has the numbers, `bisection` the layer if it is known."""

    def __init__(
        self, message: str, verification: Verification, bisection: Bisection | None = None, path: Path | None = None
    ):
        super().__init__(message, path=path)
        self.verification = verification
        self.bisection = bisection

    def renamed(self, old: Path, new: Path) -> GateError:
        """This error for an artifact that would have been called `new`."""
        bisection = self.bisection
        if bisection is not None and bisection.artifact == old:
            bisection = replace(bisection, artifact=new)
        return GateError(str(self), self.verification.renamed(old, new), bisection, new)


def pass_gate(
    path: Path, out: Path, checkpoint: Path, gate: Gate, data: CocoDataset | None, progress: Progress | None = None
) -> Verification:
    """Score the file at `path`, which will be called `out`, on every backend that can run it here.

    data: the data that `gate` names, if it was read already. The verdict may be `not scored`, but not failed. Raises
    `GateError` past tolerance, and the errors of `verify`.
    """

    def report(task: str, done: int, total: int) -> None:
        if progress is not None:
            progress(out.name if task == path.name else task, done, total)

    verification = verify(
        [path],
        checkpoint,
        gate.annotations,
        gate.images,
        gate.tolerance,
        progress=report,
        dataset=data,
        openvino_precision=gate.openvino_precision,
    ).renamed(path, out)
    if verification.verdict == "failed":
        score = verification.worst
        bisection, note = _departure(path, out, checkpoint, verification)
        raise GateError(
            f"the export loses {-score.delta_map:.2f} mAP points ({verification.reference.evaluation.map:.2f} in "
            f"PyTorch, {score.evaluation.map:.2f} exported), more than {score.tolerance:g}; nothing was written{note}",
            verification,
            bisection,
            out,
        )
    return verification


def _departure(path: Path, out: Path, checkpoint: Path, verification: Verification) -> tuple[Bisection | None, str]:
    """The first layer that departs, on the picture that moved most; or None and a note on why it is unknown."""
    from export.verification.bisect import BisectError, bisect  # only refused exports need this slow import

    if read_card(path).kind != "onnx":
        return None, ""
    files = {record.id: record.path for record in verification.dataset.records}
    image = files[verification.worst.images[0].image_id]
    try:
        return replace(bisect(path, checkpoint, image), artifact=out), ""
    except BisectError as error:
        return None, f" (no layer can be named: {error})"
