"""`trainer mine-negatives`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from runtime.commands import moves

MINE_NEGATIVES = (
    "Detect in pictures, keep what overlaps no annotated object, and write it for augment.hard_negatives, which "
    "pastes it as background onto training pictures (docs/augmentation.md)."
)


def mine_arguments(parser: argparse.ArgumentParser) -> None:
    """What `trainer mine-negatives` takes."""
    parser.add_argument("checkpoint", nargs="?", type=Path, help="default: the newest run's best.pt")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="file to write")
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", help="of any format (default: the run's training data)"
    )
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="folder of its pictures")
    parser.add_argument("--score", type=float, default=0.3, help="lowest score to keep (default: 0.3)")
    parser.add_argument(
        "--max-overlap", type=float, default=0.1, metavar="SHARE",
        help="with any object: common area over the smaller box (default: 0.1)",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, default=1000, help="most to write, by score (default: 1000)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")


def mine_negatives(arguments: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    from runtime import Detector
    from runtime.runs import newest
    from trainer import negatives

    checkpoint = arguments.checkpoint
    if checkpoint is None:
        checkpoint = newest("best.pt", runs=arguments.runs)
        print(f"checkpoint: {checkpoint} (the newest run's)")
    detector = Detector(checkpoint, device=arguments.device)
    dataset = negatives.training_data(detector.card, checkpoint, arguments.annotations, arguments.images)
    with tqdm(unit="image", disable=arguments.quiet) as bar:
        mined = negatives.mine_negatives(
            detector, dataset, arguments.out, arguments.score, arguments.max_overlap, arguments.limit, moves(bar)
        )
    for path, reason in mined.skipped:
        print(f"warning: {path}: {reason}", file=sys.stderr)
    print(f"{mined.found} of {mined.detections} detections in {mined.images} images are on no object\n"
          f"wrote {arguments.out}: the {mined.written} with the highest scores\n"
          f"next: trainer fit CONFIG augment.hard_negatives.probability=0.5 "
          f"augment.hard_negatives.file={arguments.out}")  # fmt: skip
    return 0
