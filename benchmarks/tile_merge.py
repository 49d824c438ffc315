"""Objects that the merge of tiles shows twice, or loses: `Grid.merge` and two other rules, on simulated detections.

    python -m benchmarks.tile_merge [--frames 30] [--seeds 0 1 2 3]

A frame of 1440x1920 has 60 objects of two classes, 12 to 900 px, square on average. `apart`: none overlaps another of
its class. `close`: many stand in rows, where each overlaps the one before by an IoU of 0.2 to 0.6. Tiles of 320 px
overlap by a fifth, and the network, of 320 px, also looks at the whole frame.

A window shows an object as a detector would: more surely the more pixels it has in the input (half of those of 7 px
are missed), a part of it less surely. Each edge is off by a normal error of noise * sqrt(0.7^2 + (0.035 * side)^2)
pixels of the input, so that boxes of the whole frame are off by more pixels of the frame. Three false boxes come with
each window. Greedy NMS of the window follows.

Rules: `isodet` is `Grid.merge`. `nms` is its first three steps. `lower` compares all boxes that no border cuts at a
threshold of at most 0.5, instead of those that are each other's nearest. Up to 0.5, all three are the same.

"twice" are detections of 0.3 and more on an object that has a better one, in percent of the objects; "lost" are
objects that a window had found, at an IoU of 0.5, and that no detection is left of. mAP is COCO's; in brackets, the
difference to `nms` over the seeds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime import Detections, Tiles
from runtime.datasets.annotations import CocoDataset, ImageRecord, Problems
from runtime.evaluation.evaluate import evaluate_detections
from runtime.tiles import CUT_RANK, SAME, Grid, Window

FRAME_HW, TILE_HW = (1440, 1920), (320, 320)
CLASSES = ("a", "b")
SCENES, NOISES, THRESHOLDS = ("apart", "close"), (1.0, 2.0), (0.6, 0.7)
RULES = ("nms", "lower", "isodet")
SURE, SHOWN, FOUND = 0.3, 0.3, 0.5
"""The score from which a double counts, the IoU from which it is one of an object, and that of a found object."""

Boxes = NDArray[np.float64]


@dataclass(frozen=True)
class Looks:
    """A frame's objects, and what each window shows of them, in its own pixels."""

    boxes: Boxes
    labels: NDArray[np.int64]
    grid: Grid
    parts: list[Detections]


def ious(a: Boxes, b: Boxes) -> tuple[Boxes, Boxes]:
    """Intersection over union, and over the smaller area, [A, B], of boxes [A, 4] and [B, 4]."""
    sides = np.maximum(np.minimum(a[:, None, 2:], b[:, 2:]) - np.maximum(a[:, None, :2], b[:, :2]), 0)
    shared = sides.prod(axis=2)
    areas_a, areas_b = ((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b))
    union = areas_a[:, None] + areas_b - shared
    smaller = np.minimum(areas_a[:, None], areas_b)
    return shared / np.maximum(union, 1e-9), shared / np.maximum(smaller, 1e-9)


def greedy(ranks: NDArray[np.floating], suppresses: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[D]: which boxes are kept, the highest of `ranks` [D] first; `suppresses` [D, D] is symmetric."""
    kept = np.ones(len(ranks), bool)
    for i in np.argsort(-ranks, kind="stable"):
        if kept[i]:
            kept &= ~suppresses[i]
            kept[i] = True
    return kept


def objects(rng: np.random.Generator, kind: str, count: int = 60) -> tuple[Boxes, NDArray[np.int64]]:
    """Boxes [G, 4] and labels [G] of a frame."""
    height, width = FRAME_HW
    boxes, labels = np.empty((0, 4)), np.empty(0, np.int64)

    def fits(box: Boxes, label: int) -> bool:
        if box[0] < 0 or box[1] < 0 or box[2] > width or box[3] > height:
            return False
        most = 0.0 if kind == "apart" else 0.6
        return not (ious(box[None], boxes[labels == label])[0] > most).any()

    for _ in range(3000):
        if len(boxes) >= count:
            break
        side, aspect = np.exp(rng.uniform(np.log(12), np.log(900))), np.exp(rng.normal(0, 0.35))
        w, h = side * aspect, side / aspect
        x, y, label = rng.uniform(0, max(width - w, 1)), rng.uniform(0, max(height - h, 1)), int(rng.integers(2))
        box = np.array([x, y, x + w, y + h])
        row = int(rng.integers(1, 5)) if kind == "close" else 1
        for _ in range(row):
            if not fits(box, label):
                break
            boxes, labels = np.concatenate([boxes, box[None]]), np.append(labels, label)
            iou = rng.uniform(0.2, 0.6)
            step = (1 - iou) / (1 + iou)  # of two equal boxes side by side
            shift = np.array([step * w, 0.0]) if rng.random() < 0.5 else np.array([0.0, step * h])
            box = np.concatenate([box[:2] + shift, box[2:] + shift])
    return boxes, labels


def look(
    rng: np.random.Generator, boxes: Boxes, labels: NDArray[np.int64], window: Window, noise: float, threshold: float
) -> Detections:
    """What the network shows in a window, in its pixels."""
    width, height = window.x2 - window.x1, window.y2 - window.y1
    scale = min(TILE_HW[0] / height, TILE_HW[1] / width)
    border = np.array([width, height] * 2)
    found: list[tuple[float, Boxes, int]] = []
    for box, label in zip(boxes, labels.tolist(), strict=True):
        seen = np.clip(box - [window.x1, window.y1] * 2, 0, border)
        sides = seen[2:] - seen[:2]
        share = sides.prod() / (box[2:] - box[:2]).prod()
        if share < 0.25:
            continue
        pixels = np.log2(np.sqrt(sides.prod()) * scale)
        whole = share > 0.99
        chance = 0.97 / (1 + np.exp(-2.5 * (pixels - 2.8))) * (1 if whole else 0.9 * share**0.5)
        if rng.random() > chance:
            continue
        sure = 0.85 / (1 + np.exp(-1.5 * (pixels - 3.5))) * (1 if whole else share**0.5)
        sigma = np.tile(noise * np.sqrt(0.7**2 + (0.035 * sides * scale) ** 2) / scale, 2)
        moved = np.clip(seen + rng.normal(0, 1, 4) * sigma, 0, border)
        at_border = (seen <= 0) | (seen >= border)
        moved = np.where(at_border & (rng.random(4) < 0.8), seen, moved)
        found.append((float(np.clip(sure + rng.normal(0, 0.1), 0.16, 0.999)), moved, label))
    for _ in range(rng.poisson(3)):
        first, side = rng.uniform(0, 1, 2) * border[:2], np.exp(rng.uniform(np.log(8), np.log(120))) / scale
        false = np.clip(np.concatenate([first, first + side]), 0, border)
        found.append((rng.uniform(0.16, 0.45), false, int(rng.integers(2))))
    found = sorted((one for one in found if (one[1][2:] - one[1][:2]).min() > 1), key=lambda one: -one[0])
    rows = np.array([one[1] for one in found]).reshape(-1, 4)
    scores, classes = np.array([one[0] for one in found]), np.array([one[2] for one in found], np.int32)
    kept = greedy(scores, (ious(rows, rows)[0] > threshold) & (classes[:, None] == classes))
    return Detections(rows[kept].astype(np.float32), scores[kept].astype(np.float32), classes[kept], CLASSES)


def looks(rng: np.random.Generator, kind: str, noise: float, threshold: float) -> Looks:
    boxes, labels = objects(rng, kind)
    grid = Tiles(overlap=0.2).grid(FRAME_HW, TILE_HW)
    return Looks(boxes, labels, grid, [look(rng, boxes, labels, w, noise, threshold) for w in grid.windows])


def in_frame(grid: Grid, parts: Sequence[Detections]) -> tuple[Detections, NDArray[np.intp], NDArray[np.bool_]]:
    """All detections in frame pixels, by falling score; the window of each, and whether a border has cut it."""
    moved = [
        part.boxes_xyxy + np.array([w.x1, w.y1] * 2, np.float32) for w, part in zip(grid.windows, parts, strict=True)
    ]
    cut = np.concatenate([grid._cut(window, part) for window, part in zip(grid.windows, moved, strict=True)])
    windows = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    scores = np.concatenate([part.scores for part in parts])
    order = np.argsort(-scores, kind="stable")
    labels = np.concatenate([part.labels for part in parts])
    found = Detections(np.concatenate(moved)[order], scores[order], labels[order], CLASSES)
    return found, windows[order], cut[order]


def merged(seen: Looks, threshold: float, rule: str) -> Detections:
    """The detections of the frame by one of `RULES`."""
    if rule == "isodet":
        return seen.grid.merge(seen.parts, threshold)
    found, windows, cut = in_frame(seen.grid, seen.parts)
    boxes = found.boxes_xyxy.astype(np.float64)
    iou, ios = ious(boxes, boxes)
    comparable = (found.labels[:, None] == found.labels) & (windows[:, None] != windows)
    of_whole = threshold if rule == "nms" else min(threshold, SAME)
    suppresses = comparable & np.where(cut[:, None] | cut, ios > threshold, iou > of_whole)
    return found[greedy(found.scores * np.where(cut, CUT_RANK, 1.0), suppresses)]


def doubles_and_lost(seen: Looks, kept: Detections) -> tuple[int, int]:
    """How many detections show an object again, and how many objects that a window found have none left."""
    found = in_frame(seen.grid, seen.parts)[0]
    covered = [
        (np.where(d.labels[:, None] == seen.labels, ious(d.boxes_xyxy.astype(float), seen.boxes)[0], 0) >= FOUND).any(0)
        for d in (found, kept)
    ]
    overlap = np.where(kept.labels[:, None] == seen.labels, ious(kept.boxes_xyxy.astype(float), seen.boxes)[0], 0)
    taken, doubles = np.zeros(len(seen.boxes), bool), 0
    for row in overlap[kept.scores >= SURE]:  # by falling score
        best = int(np.where(taken, 0, row).argmax())
        if row[best] >= FOUND and not taken[best]:
            taken[best] = True
        else:
            doubles += bool(row.max() >= SHOWN)
    return doubles, int((covered[0] & ~covered[1]).sum())


def dataset_of(frames: Sequence[Looks]) -> CocoDataset:
    records = tuple(
        ImageRecord(
            i, Path(f"{i}.png"), *FRAME_HW, seen.boxes.astype(np.float32), seen.labels,
            np.zeros(len(seen.labels), bool),
            (seen.boxes[:, 2:] - seen.boxes[:, :2]).prod(axis=1).astype(np.float32),
        )
        for i, seen in enumerate(frames)
    )  # fmt: skip
    return CocoDataset(Path("simulated"), Path(), CLASSES, (1, 2), records, Problems())


def rows_of(kind: str, noise: float, threshold: float, frames: int, seeds: Sequence[int]) -> list[str]:
    """The table's rows of one setting, a rule each: means over the seeds."""
    results: dict[str, list[tuple[float, ...]]] = {rule: [] for rule in RULES}
    for seed in seeds:
        rng = np.random.default_rng(seed)
        of_frames = [looks(rng, kind, noise, threshold) for _ in range(frames)]
        count = sum(len(seen.labels) for seen in of_frames)
        for rule in RULES:
            kept = [merged(seen, threshold, rule) for seen in of_frames]
            sums = np.sum([doubles_and_lost(*pair) for pair in zip(of_frames, kept, strict=True)], axis=0)
            judged = evaluate_detections(dict(enumerate(kept)), dataset_of(of_frames), max_dets=(1000,))
            results[rule].append((*(100 * sums / count), judged.map, judged.ap50))
    lines = []
    for rule, of_seeds in results.items():
        twice, lost, map_, ap50 = np.mean(of_seeds, axis=0)
        gains = np.array(of_seeds) - np.array(results["nms"])
        gain = "" if rule == "nms" else f" ({gains[:, 2].min():+.2f} to {gains[:, 2].max():+.2f})"
        cells = f"{twice:.1f} | {lost:.2f} | {map_:.2f}{gain} | {ap50:.2f}"
        lines.append(f"| {kind} | {threshold:g} | {noise:g} | {rule} | {cells} |")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=30, help="of each setting and seed")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3])
    parser.add_argument("--thresholds", nargs="+", type=float, default=list(THRESHOLDS), help="of the NMS")
    arguments = parser.parse_args(argv)
    print("| objects | NMS threshold | noise | rule | twice, % | lost, % | mAP | AP50 |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in SCENES:
        for threshold in arguments.thresholds:
            for noise in NOISES:
                print("\n".join(rows_of(kind, noise, threshold, arguments.frames, arguments.seeds)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
