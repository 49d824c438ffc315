"""`exporter bisect`."""

from __future__ import annotations

import argparse
from pathlib import Path

BISECT = (
    "Compare an ONNX file with the network it was exported from, tensor by tensor on one picture, and name the first "
    "layer that departs."
)


def bisect_arguments(parser: argparse.ArgumentParser) -> None:
    """What `exporter bisect` takes."""
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help="an .onnx file of any precision")
    parser.add_argument("--against", type=Path, metavar="CHECKPOINT", help="default: the one beside the artifact")
    parser.add_argument(
        "--image", type=Path, metavar="FILE", help="the picture to look at (default: the first validation picture)"
    )


def bisect(arguments: argparse.Namespace) -> int:
    """Run it; returns the exit status: 0 where no layer departs."""
    from export.verification import bisect as bisection

    found = bisection.bisect(arguments.artifact, arguments.against, arguments.image)
    print(found.text())
    return 0 if found.first is None else 1
