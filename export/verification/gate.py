"""The gate that an artifact passes before it gets its name: scored against its checkpoint, and explained if refused.

Nothing is kept of a refused file but the report: what could be deployed by mistake is not left lying about. Exported
with `--no-verify` it is written, says in its card that nobody scored it, and can be looked into with
`exporter bisect`.
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
    """The artifact lost more mAP than allowed; `verification` has the numbers, `bisection` the layer, where known."""

    def __init__(
        self, message: str, verification: Verification, bisection: Bisection | None = None, path: Path | None = None
    ):
        super().__init__(message, path=path)
        self.verification = verification
        self.bisection = bisection

    def renamed(self, old: Path, new: Path) -> GateError:
        """The same of an artifact that would have been called `new`."""
        named = self.bisection
        if named is not None and named.artifact == old:
            named = replace(named, artifact=new)
        return GateError(str(self), self.verification.renamed(old, new), named, new)


def pass_gate(
    path: Path, out: Path, checkpoint: Path, gate: Gate, data: CocoDataset | None, progress: Progress | None = None
) -> Verification:
    """Score the file at `path`, which will be called `out`, on every backend that can run it here.

    data: what `gate` names, where it was read already. The result may be `not scored`, never failed. Raises
    `GateError` past tolerance, and what `verify` raises.
    """

    def report(what: str, done: int, total: int) -> None:
        if progress is not None:
            progress(out.name if what == path.name else what, done, total)

    found = verify([path], checkpoint, gate.annotations, gate.images, gate.tolerance, progress=report, dataset=data)
    verification = found.renamed(path, out)
    if verification.verdict == "failed":
        score = min(verification.artifacts, key=lambda s: s.delta_map)
        bisection, note = _departure(path, out, checkpoint, verification)
        raise GateError(
            f"the export loses {-score.delta_map:.2f} mAP points ({verification.reference.evaluation.map:.2f} in "
            f"PyTorch, {score.evaluation.map:.2f} exported), more than {score.tolerance:g}; nothing was written{note}",
            verification, bisection, out,
        )  # fmt: skip
    return verification


def _departure(path: Path, out: Path, checkpoint: Path, verification: Verification) -> tuple[Bisection | None, str]:
    """The first layer that departs, on the picture that moved most; or why it is not known."""
    from export.verification.bisect import BisectError, bisect  # only a refused export pays for it

    if read_card(path).kind != "onnx":
        return None, ""
    score = min(verification.artifacts, key=lambda s: s.delta_map)
    files = {record.id: record.path for record in verification.dataset.records}
    image = files[score.images[0].image_id]
    try:
        return replace(bisect(path, checkpoint, image), artifact=out), ""
    except BisectError as error:
        return None, f" (no layer can be named: {error})"
