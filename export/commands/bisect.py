"""`exporter bisect`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from runtime.commands.arguments import flag


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
