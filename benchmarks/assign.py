"""ATSS assignment of a whole batch against a loop over images of the published algorithm.

    python benchmarks/assign.py [--images 16] [--boxes 60] [--rounds 5] [--threads 1] [--device cpu]

Both assign the same batch: 800 x 1344 px, five levels, 22,400 anchors, 1 to 60 boxes in an image (one image has
all 60). The loop is algorithm 1 as mmdetection implements it: for each image the IoU and the distance of every
anchor with every box, then candidates, threshold, conflicts. The contestants take turns, round after round, so
that a slow moment of the machine hits both; the table shows the median round of each and the ratio of the medians.
Before anything is timed the two results are compared: they must be the same, prior for prior.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from models.assigners import BACKGROUND
from models.assigners.atss import assign_atss
from models.boxes import iou
from models.config.model import AnchorConfig
from models.priors import Priors, feature_sizes, priors

SIZE_HW, TOPK = (800, 1344), 9
INFINITY = 1e8


def image_by_image(grid: Priors, boxes: list[Tensor]) -> Tensor:
    """ATSS, algorithm 1: matched box index per prior [B, N], one image and all anchors x boxes at a time."""
    return torch.stack([one_image(grid, mine) for mine in boxes])


def one_image(grid: Priors, boxes: Tensor) -> Tensor:
    """The steps of mmdetection's ATSSAssigner in their order, for boxes [G, 4]; matched [N]."""
    N, G = len(grid.boxes_xyxy), len(boxes)
    overlaps = iou(grid.boxes_xyxy[:, None], boxes)  # [N, G]
    points, centers = grid.points, (boxes[:, :2] + boxes[:, 2:]) / 2
    distances = (points[:, None, :] - centers[None, :, :]).pow(2).sum(-1).sqrt()  # [N, G]
    candidates, start = [], 0
    for size in grid.level_sizes:
        nearest = distances[start : start + size].topk(min(TOPK, size), dim=0, largest=False).indices
        candidates.append(nearest + start)
        start += size
    index = torch.cat(candidates)  # [M, G]
    candidate_overlaps = overlaps[index, torch.arange(G, device=index.device)]
    threshold = candidate_overlaps.mean(0) + candidate_overlaps.std(0)
    positive = candidate_overlaps >= threshold
    near, far = points[index] - boxes[:, :2], boxes[:, 2:] - points[index]  # [M, G, 2]
    positive &= torch.cat([near, far], dim=-1).amin(dim=-1) > 0.01
    flat = (index + torch.arange(G, device=index.device) * N)[positive]
    wanted = torch.full_like(overlaps, -INFINITY).t().contiguous().view(-1)
    wanted[flat] = overlaps.t().contiguous().view(-1)[flat]
    best, owner = wanted.view(G, N).t().max(dim=1)
    return torch.where(best > -INFINITY, owner, BACKGROUND)


def scene(images: int, most: int, device: torch.device) -> list[Tensor]:
    """Boxes of a batch, [1..most, 4] each: sides from 16 px to most of the picture, evenly in their logarithm."""
    generator = torch.Generator().manual_seed(0)
    height, width = SIZE_HW
    batch = []
    for i in range(images):
        count = most if i == 0 else int(torch.randint(1, most + 1, (), generator=generator))
        sides = 16 * 40 ** torch.rand(count, 2, generator=generator)
        centers = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
        limit = torch.tensor([width, height, width, height])
        batch.append(torch.cat([centers - sides / 2, centers + sides / 2], dim=1).clamp(min=0).minimum(limit))
    return [boxes.to(device) for boxes in batch]


def seconds(work: Callable[[], Tensor], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--boxes", type=int, default=60, help="most boxes in an image")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    grid = priors(feature_sizes(SIZE_HW, (3, 7)), (8, 16, 32, 64, 128), AnchorConfig(size=8.0)).to(device)
    ragged = scene(arguments.images, arguments.boxes, device)
    boxes = torch.nn.utils.rnn.pad_sequence(ragged, batch_first=True)  # [B, G, 4]
    counts = torch.tensor([len(mine) for mine in ragged], device=device)
    valid = torch.arange(boxes.shape[1], device=device) < counts[:, None]
    contestants = {
        "loop over images, all anchors x boxes": lambda: image_by_image(grid, ragged),
        "isodet, the batch at once": lambda: assign_atss(grid, boxes, valid, TOPK),
    }
    loop, ours = (work() for work in contestants.values())
    if not torch.equal(loop, ours):
        print(f"the results differ at {int((loop != ours).sum())} of {loop.numel()} priors", file=sys.stderr)
        return 1
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(arguments.rounds):
        for name, work in contestants.items():
            times[name].append(seconds(work, device))
    slow = statistics.median(times["loop over images, all anchors x boxes"])
    print(f"torch {torch.__version__}, {device}, {arguments.threads} threads, {arguments.images} images, "
          f"{len(grid.boxes_xyxy)} anchors, {len(boxes[0])} boxes at most, {int(counts.sum())} in all, "
          f"{int((ours >= 0).sum())} positives, the same in both")  # fmt: skip
    print(f"\n{'ATSS assignment':<42}{'ms':>8}{'faster':>9}   rounds (ms)")
    for name, values in times.items():
        median = statistics.median(values)
        rounds = ", ".join(f"{1000 * v:.0f}" for v in values)
        print(f"{name:<42}{1000 * median:>8.0f}{slow / median:>8.2f}x   {rounds}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
