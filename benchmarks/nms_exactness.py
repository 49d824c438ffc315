"""How often the portable NMS is not greedy NMS, and what its certificate says of it.

    python benchmarks/nms_exactness.py [--sets 500]
    python benchmarks/nms_exactness.py CHECKPOINT --pictures FOLDER

Compares `models.deploy.nms` with torchvision's NMS of each class: on random candidate sets of several kinds, or on the
candidates that a checkpoint has on pictures, all of them and at any score. "differ" counts sets whose detections are
not the same, "withheld" those whose certificate is false, "silent" those that differ and have it all the same, which
must be none. "rounds" are the most that any set took until nothing changed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor
from tqdm import tqdm

from models.checkpoint import load_detector
from models.deploy.nms import keep_until_stable, none_of, suppression
from runtime.images.image import letterbox, read_image

KINDS = ("objects", "scattered", "whole pixels", "chain")


def candidates(rng: np.random.Generator, kind: str, count: int, size: float = 320.0) -> tuple[Tensor, Tensor]:
    """boxes [1, K, 4] and labels [1, K] of ten classes, best first."""
    first: np.ndarray
    sides: np.ndarray
    labels: np.ndarray = rng.integers(0, 3, count)
    if kind == "objects":  # what a detector gives: some boxes for each of a few objects
        which = rng.integers(0, 25, count)
        centers, sides = rng.uniform(0, size, (25, 2)), rng.uniform(16, 120, (25, 2))
        sides = sides[which] * np.exp(rng.normal(0, 0.2, (count, 2)))
        first, labels = centers[which] + rng.normal(0, 5, (count, 2)) - sides / 2, which % 10
    elif kind == "scattered":
        first, sides = rng.uniform(0, size, (count, 2)), rng.uniform(0, 120, (count, 2))
    elif kind == "whole pixels":  # equal, touching and empty boxes, and exact ratios
        first, sides = rng.integers(0, 40, (count, 2)) * 1.0, rng.integers(0, 24, (count, 2)) * 1.0
    else:  # along a line, each overlapping its neighbors only, from left to right: the longest chain there is
        first, sides = np.stack([np.arange(count) * 10.0, np.zeros(count)], axis=1), np.full((count, 2), 45.0)
        size, labels = np.inf, np.zeros(count, np.int64)
    boxes = np.concatenate([first, first + sides], axis=1).clip(0, size).astype(np.float32)
    return torch.from_numpy(boxes)[None], torch.from_numpy(labels)[None]


def greedy(boxes: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """[K] bool: torchvision's NMS of each class, in the order of the candidates."""
    kept = torch.zeros(len(boxes), dtype=torch.bool)
    for label in labels.unique():
        index = (labels == label).nonzero().flatten()
        ranks = torch.arange(len(index), 0, -1, dtype=torch.float32)
        kept[index[torchvision.ops.nms(boxes[index], ranks, threshold)]] = True
    return kept


def rounds_of(suppresses: Tensor) -> int:
    """How many rounds change something."""
    kept = torch.ones_like(suppresses[:, :1])
    for done in range(suppresses.shape[1] + 1):
        before, kept = kept, none_of(torch.matmul(kept, suppresses))
        if torch.equal(kept, before):
            return done
    raise AssertionError("a chain longer than there are candidates")


def from_pictures(checkpoint: Path, folder: Path) -> Iterator[tuple[Tensor, Tensor]]:
    deploy, card = load_detector(checkpoint)
    height, width = card["input_size_hw"]
    for path in sorted(folder.glob("*.jpg")):
        image = torch.from_numpy(letterbox(read_image(path), (height, width))[0])[None]
        with torch.inference_mode():
            pixels = deploy.graph_input(image)
            raw = deploy.detector.network(deploy.detector.pixels.normalized(pixels))
            boxes, _, labels = deploy.candidates(raw)
        yield boxes, labels


def row(name: str, sets: list[tuple[Tensor, Tensor]], threshold: float) -> str:
    differ = withheld = silent = most = 0
    for boxes, labels in tqdm(sets, desc=name, leave=False):
        suppresses = suppression(boxes, labels, threshold).float()
        kept, exact = keep_until_stable(suppresses)
        other = not torch.equal(kept[0], greedy(boxes[0], labels[0], threshold))
        differ, withheld = differ + other, withheld + (not exact.item())
        silent, most = silent + (other and bool(exact.item())), max(most, rounds_of(suppresses))
    return f"| {name} | {sets[0][0].shape[1]} | {len(sets)} | {differ} | {withheld} | {silent} | {most} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", type=Path)
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="JPEG files, with a checkpoint")
    parser.add_argument("--sets", type=int, default=500, help="random sets of each kind and each K")
    parser.add_argument("--iou", type=float, default=0.6, help="threshold")
    arguments = parser.parse_args()
    if (arguments.checkpoint is None) != (arguments.pictures is None):
        parser.error("a checkpoint and --pictures belong together")
    print("| candidates | K | sets | differ | withheld | silent | rounds |\n|---|---|---|---|---|---|---|")
    if arguments.checkpoint is not None:
        print(
            row(arguments.pictures.name, list(from_pictures(arguments.checkpoint, arguments.pictures)), arguments.iou)
        )
        return 0
    for kind in KINDS:
        for count in (100, 300, 1000):
            rng = np.random.default_rng(count)
            number = 1 if kind == "chain" else arguments.sets if count < 1000 else arguments.sets // 5
            print(row(kind, [candidates(rng, kind, count) for _ in range(max(1, number))], arguments.iou))
    return 0


if __name__ == "__main__":
    sys.exit(main())
